// The programs of the tests with gRPC in Go: a service that says how services are, and who asks it over one connection.
// Usage: grpc serve CERTIFICATE KEY | grpc ask ADDRESS CERTIFICATE BEFORE AFTER
// CERTIFICATE may be empty: plain text. The client makes BEFORE calls, says so, and waits for a line before it makes AFTER more.
package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func serve(certificate, key string) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	var options []grpc.ServerOption
	if certificate != "" {
		transport, err := credentials.NewServerTLSFromFile(certificate, key)
		check(err)
		options = append(options, grpc.Creds(transport))
	}
	server := grpc.NewServer(options...)
	grpc_health_v1.RegisterHealthServer(server, health.NewServer())
	check(server.Serve(listener))
}

// Every third service is not known. Each call has a trace of its own: its number.
func ask(client grpc_health_v1.HealthClient, from, to int) {
	for number := from; number < to; number++ {
		trace := fmt.Sprintf("00-%032x-%016x-01", number+1, number+1)
		ctx := metadata.AppendToOutgoingContext(context.Background(), "traceparent", trace)
		request := &grpc_health_v1.HealthCheckRequest{}
		expected := codes.OK
		if number%3 == 2 {
			request.Service = "nobody"
			expected = codes.NotFound
		}
		_, err := client.Check(ctx, request)
		if status.Code(err) != expected {
			panic(err)
		}
	}
}

func main() {
	if os.Args[1] == "serve" {
		// Ends with what started it.
		go func() {
			io.Copy(io.Discard, os.Stdin)
			os.Exit(0)
		}()
		serve(os.Args[2], os.Args[3])
	}
	transport := grpc.WithInsecure()
	if os.Args[3] != "" {
		authority, err := credentials.NewClientTLSFromFile(os.Args[3], "localhost")
		check(err)
		transport = grpc.WithTransportCredentials(authority)
	}
	connection, err := grpc.Dial(os.Args[2], transport, grpc.WithBlock())
	check(err)
	client := grpc_health_v1.NewHealthClient(connection)
	before, err := strconv.Atoi(os.Args[4])
	check(err)
	after, err := strconv.Atoi(os.Args[5])
	check(err)
	ask(client, 0, before)
	fmt.Println("asked")
	lines := bufio.NewReader(os.Stdin)
	_, err = lines.ReadString('\n')
	check(err)
	ask(client, before, before+after)
	fmt.Println("done")
	lines.ReadString('\n')
}
