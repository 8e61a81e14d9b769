// Program clientv3 is an ordinary user of etcd's Go client. Each scenario talks to the server at -endpoint, says what it
// sees, and ends with "ok" and exit code 0, or with one line on standard error and exit code 1.
//
//	clientv3 -endpoint 127.0.0.1:2379 put-get
//
// A scenario works under its own -prefix, so that many can run on one server at the same time.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"sort"
	"strings"
	"time"

	"google.golang.org/grpc"
)

// run is what a scenario gets: where the server is, the keys it may use, and a context that ends when time is up.
type run struct {
	ctx      context.Context
	endpoint string
	prefix   string
	lock     string
	writes   string
	rounds   int
	value    string
}

var scenarios = map[string]func(*run) error{
	"put-get":        putGet,
	"dial-timeout":   dialTimeout,
	"watch":          watchOrder,
	"lease-expiry":   leaseExpiry,
	"keep-alive":     keepAlive,
	"mutex":          mutexHandover,
	"mutex-fairness": mutexFairness,
	"exclusion":      exclusion,
	"rolling":        rolling,
	"put":            putOnly,
	"get":            getOnly,
}

func main() {
	r := &run{}
	var limit time.Duration
	flag.StringVar(&r.endpoint, "endpoint", "127.0.0.1:2379", "the server, or servers with commas between")
	flag.StringVar(&r.prefix, "prefix", "/clientv3/", "keys of the scenario start with this; get and put take it as the key")
	flag.StringVar(&r.lock, "lock", "/my-lock/", "name of the mutex in the mutex scenarios")
	flag.StringVar(&r.writes, "writes", "", "exclusion: prefix of the keys that the other holder of the lock writes")
	flag.IntVar(&r.rounds, "rounds", 10, "exclusion: how many times to take the lock")
	flag.StringVar(&r.value, "value", "", "put: the value")
	flag.DurationVar(&limit, "limit", 90*time.Second, "the scenario fails after this long")
	flag.Usage = func() {
		names := make([]string, 0, len(scenarios))
		for name := range scenarios {
			names = append(names, name)
		}
		sort.Strings(names)
		fmt.Fprintf(os.Stderr, "usage: clientv3 [flags] <%s>\n", strings.Join(names, "|"))
		flag.PrintDefaults()
	}
	flag.Parse()
	scenario, known := scenarios[flag.Arg(0)]
	if !known || flag.NArg() != 1 {
		flag.Usage()
		os.Exit(2)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	r.ctx = ctx
	if err := scenario(r); err != nil {
		fmt.Fprintf(os.Stderr, "error: %s (%s): %v\n", flag.Arg(0), importPath, err)
		os.Exit(1)
	}
	if name := flag.Arg(0); name != "get" && name != "put" {
		fmt.Println("ok")
	}
}

// connect dials with a timeout, and waits until the connection stands.
func (r *run) connect() (*client, error) {
	c, err := newClient(config{
		Endpoints:   strings.Split(r.endpoint, ","),
		DialTimeout: 5 * time.Second,
		DialOptions: []grpc.DialOption{grpc.WithBlock()}, //nolint:staticcheck // what programs of both ages do
	})
	if err != nil {
		return nil, fmt.Errorf("connecting to %s: %w", r.endpoint, err)
	}
	return c, nil
}

// say prints one line with the time since the program started.
func say(format string, args ...any) {
	fmt.Printf("%6.2fs %s\n", time.Since(started).Seconds(), fmt.Sprintf(format, args...))
}

var started = time.Now()
