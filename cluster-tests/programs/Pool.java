// A server of HTTP with a pool of threads: PORT BACKEND. Each request asks another server.

import com.sun.net.httpserver.HttpServer;
import java.net.HttpURLConnection;
import java.net.InetSocketAddress;
import java.net.URL;
import java.util.concurrent.Executors;

public class Pool {
    public static void main(String[] arguments) throws Exception {
        int port = Integer.parseInt(arguments[0]);
        String backend = "http://127.0.0.1:" + arguments[1];
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", port), 256);
        server.setExecutor(Executors.newFixedThreadPool(64));
        server.createContext("/", exchange -> {
            URL url = new URL(backend + exchange.getRequestURI());
            HttpURLConnection connection = (HttpURLConnection) url.openConnection();
            byte[] body = connection.getInputStream().readAllBytes();
            exchange.sendResponseHeaders(200, body.length);
            exchange.getResponseBody().write(body);
            exchange.close();
        });
        server.start();
    }
}
