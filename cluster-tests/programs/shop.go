// A server of HTTP with a goroutine for each connection: PORT DSN, and certificate and key where it is encrypted. Each request asks a database three times: two goroutines of its own at
// the same time, over connections that all share, and then itself.
package main

import (
	"database/sql"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync"

	_ "github.com/lib/pq"
)

func check(err error) {
	if err != nil {
		panic(err)
	}
}

func main() {
	database, err := sql.Open("postgres", os.Args[2])
	check(err)
	// Fewer than requests at a time: some wait for a connection, which another goroutine leaves to them.
	database.SetMaxOpenConns(16)
	database.SetMaxIdleConns(16)
	ask := func(number, part string) {
		var one int
		check(database.QueryRow("SELECT 1 AS t" + number + "_" + part).Scan(&one))
	}
	http.HandleFunc("/t/", func(writer http.ResponseWriter, request *http.Request) {
		number := strings.TrimPrefix(request.URL.Path, "/t/")
		var parts sync.WaitGroup
		parts.Add(2)
		for _, part := range []string{"a", "b"} {
			part := part
			go func() {
				defer parts.Done()
				ask(number, part)
			}()
		}
		parts.Wait()
		ask(number, "c")
		fmt.Fprint(writer, "ok")
	})
	address := "127.0.0.1:" + os.Args[1]
	if len(os.Args) > 4 {
		check(http.ListenAndServeTLS(address, os.Args[3], os.Args[4], nil))
	}
	check(http.ListenAndServe(address, nil))
}
