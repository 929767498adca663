/* A client with OpenSSL inside: waits for a line, then asks a server on this host so many times over one connection.
   Usage: client PORT REQUESTS */
#include <arpa/inet.h>
#include <openssl/ssl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int main(int count, char **arguments) {
    char line[100], body[65536];
    if (count < 3) return 2;
    puts("ready");
    fflush(stdout);
    if (!fgets(line, sizeof line, stdin)) return 2;
    struct sockaddr_in server = {.sin_family = AF_INET, .sin_port = htons(atoi(arguments[1]))};
    server.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int descriptor = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(descriptor, (struct sockaddr *)&server, sizeof server) != 0) return 3;
    SSL *session = SSL_new(SSL_CTX_new(TLS_client_method()));
    SSL_set_fd(session, descriptor);
    if (SSL_connect(session) != 1) return 4;
    for (int number = 0; number < atoi(arguments[2]); number++) {
        int length = snprintf(line, sizeof line, "GET /%d HTTP/1.1\r\nHost: localhost\r\n\r\n", number);
        if (SSL_write(session, line, length) != length) return 5;
        /* The body is 30,000 bytes; its head comes before it. */
        int have = 0, end = 0;
        while (!end || have < end) {
            int got = SSL_read(session, body + have, sizeof body - 1 - have);
            if (got <= 0) return 6;
            have += got;
            body[have] = 0;
            char *head = strstr(body, "\r\n\r\n");
            if (head) end = head + 4 - body + 30000;
        }
    }
    puts("done");
    fflush(stdout);
    fgets(line, sizeof line, stdin);
    return 0;
}
