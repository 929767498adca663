// The programs of the tests with Go: a shop that asks a database and a store while it serves, the store, and a customer.
// Usage: shop serve CERTIFICATE KEY STORE DSN | shop store | shop buy URL CUSTOMERS ORDERS
package main

import (
	"crypto/tls"
	"database/sql"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"

	_ "github.com/lib/pq"
)

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func listen() net.Listener {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	check(err)
	fmt.Println(listener.Addr().(*net.TCPAddr).Port)
	return listener
}

func get(client *http.Client, url string) {
	response, err := client.Get(url)
	check(err)
	body, err := io.ReadAll(response.Body)
	check(err)
	response.Body.Close()
	if response.StatusCode != 200 || len(body) == 0 {
		panic(response.Status)
	}
}

// A client with so many connections that none is closed.
func pooled(connections int) *http.Client {
	return &http.Client{Transport: &http.Transport{
		MaxIdleConns:        connections,
		MaxIdleConnsPerHost: connections,
		TLSClientConfig:     &tls.Config{InsecureSkipVerify: true},
	}}
}

// Each order: two goroutines that ask the database, one that asks the store, and then a question of its own.
func serve(certificate, key, store, dsn string) {
	var database *sql.DB
	if dsn != "" {
		var err error
		database, err = sql.Open("postgres", dsn)
		check(err)
		database.SetMaxOpenConns(8)
		database.SetMaxIdleConns(8)
	}
	client := pooled(64)
	ask := func(order, part string) {
		var one int
		check(database.QueryRow("SELECT 1 AS order_" + order + "_" + part).Scan(&one))
	}
	http.HandleFunc("/order/", func(writer http.ResponseWriter, request *http.Request) {
		order := strings.TrimPrefix(request.URL.Path, "/order/")
		var parts sync.WaitGroup
		work := []func(){func() { get(client, store+"/stock/"+order) }}
		if database != nil {
			work = append(work, func() { ask(order, "a") }, func() { ask(order, "b") })
		}
		parts.Add(len(work))
		for _, part := range work {
			part := part
			go func() {
				defer parts.Done()
				part()
			}()
		}
		parts.Wait()
		if database != nil {
			ask(order, "c")
		}
		fmt.Fprint(writer, strings.Repeat("x", 30000))
	})
	if certificate == "" {
		check(http.Serve(listen(), nil))
	}
	// HTTP/1 alone, where HTTP/2 is not asked for.
	server := &http.Server{}
	if os.Getenv("SHOP_HTTP2") == "" {
		server.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){}
	}
	check(server.ServeTLS(listen(), certificate, key))
}

func buy(url string, customers, orders int) {
	client := pooled(customers)
	if os.Getenv("SHOP_HTTP2") != "" {
		client.Transport.(*http.Transport).ForceAttemptHTTP2 = true
	}
	var all sync.WaitGroup
	all.Add(customers)
	for customer := 0; customer < customers; customer++ {
		customer := customer
		go func() {
			defer all.Done()
			for order := 0; order < orders; order++ {
				get(client, fmt.Sprintf("%s/order/%d_%d", url, customer, order))
			}
		}()
	}
	all.Wait()
}

func main() {
	// Ends with what started it.
	if os.Args[1] != "buy" {
		go func() {
			io.Copy(io.Discard, os.Stdin)
			os.Exit(0)
		}()
	}
	switch os.Args[1] {
	case "serve":
		serve(os.Args[2], os.Args[3], os.Args[4], os.Args[5])
	case "store":
		http.HandleFunc("/stock/", func(writer http.ResponseWriter, request *http.Request) { fmt.Fprint(writer, "much") })
		check(http.Serve(listen(), nil))
	case "buy":
		customers, err := strconv.Atoi(os.Args[3])
		check(err)
		orders, err := strconv.Atoi(os.Args[4])
		check(err)
		buy(os.Args[2], customers, orders)
	}
}
