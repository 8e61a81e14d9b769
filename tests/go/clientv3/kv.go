// Put, get and watch.
package main

import (
	"context"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
)

// putGet connects with a dial timeout, puts a key and reads it back.
func putGet(r *run) error {
	c, err := r.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	key := r.prefix + "sample_key"
	put, err := c.Put(r.ctx, key, "sample_value")
	if err != nil {
		return err
	}
	got, err := c.Get(r.ctx, key)
	if err != nil {
		return err
	}
	if got.Count != 1 || len(got.Kvs) != 1 || string(got.Kvs[0].Value) != "sample_value" {
		return fmt.Errorf("wrote sample_value to %s, read back %v", key, got.Kvs)
	}
	if got.Kvs[0].ModRevision != put.Header.Revision || got.Kvs[0].Version < 1 {
		return fmt.Errorf("put was revision %d, the key says %v", put.Header.Revision, got.Kvs[0])
	}
	say("%s = %s at revision %d", key, got.Kvs[0].Value, got.Header.Revision)
	return nil
}

// dialTimeout connects to an address where nobody answers: an error after the timeout, not a hang.
func dialTimeout(r *run) error {
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer silent.Close()
	begin := time.Now()
	c, err := newClient(config{
		Endpoints:   []string{silent.Addr().String()},
		DialTimeout: time.Second,
		DialOptions: []grpc.DialOption{grpc.WithBlock()}, //nolint:staticcheck // see connect
	})
	if err == nil {
		c.Close()
		return fmt.Errorf("connected to a server that never answers")
	}
	say("gave up after %.1fs: %v", time.Since(begin).Seconds(), err)
	c, err = r.connect()
	if err != nil {
		return err
	}
	return c.Close()
}

// watchOrder watches a key while another client puts, deletes and puts it: PUT, DELETE, PUT, in that order.
func watchOrder(r *run) error {
	watcher, err := r.connect()
	if err != nil {
		return err
	}
	defer watcher.Close()
	writer, err := r.connect()
	if err != nil {
		return err
	}
	defer writer.Close()

	key := r.prefix + "watched"
	seen := watcher.Watch(r.ctx, key, withCreated())
	if created := <-seen; created.Err() != nil || !created.Created {
		return fmt.Errorf("the watch was not created: %v", created.Err())
	}
	if _, err := writer.Put(r.ctx, key, "one"); err != nil {
		return err
	}
	if _, err := writer.Delete(r.ctx, key); err != nil {
		return err
	}
	if _, err := writer.Put(r.ctx, key, "two"); err != nil {
		return err
	}
	events, err := collect(r.ctx, seen, 3)
	if err != nil {
		return err
	}
	want := []string{"PUT one", "DELETE ", "PUT two"}
	for i, e := range events {
		line := fmt.Sprintf("%s %s", e.Type, e.Kv.Value)
		say("%s %s (revision %d)", line, e.Kv.Key, e.Kv.ModRevision)
		if line != want[i] {
			return fmt.Errorf("event %d is %q, want %q", i, line, want[i])
		}
		if i > 0 && e.Kv.ModRevision <= events[i-1].Kv.ModRevision {
			return fmt.Errorf("revision %d after %d", e.Kv.ModRevision, events[i-1].Kv.ModRevision)
		}
	}
	return nil
}

// collect waits for n events.
func collect(ctx context.Context, from watchChan, n int) ([]*event, error) {
	var events []*event
	for len(events) < n {
		select {
		case resp, open := <-from:
			if !open {
				return nil, fmt.Errorf("the watch ended after %d of %d events", len(events), n)
			}
			if err := resp.Err(); err != nil {
				return nil, err
			}
			events = append(events, resp.Events...)
		case <-ctx.Done():
			return nil, fmt.Errorf("saw %d of %d events: %w", len(events), n, ctx.Err())
		}
	}
	if len(events) > n {
		return nil, fmt.Errorf("saw %d events, want %d", len(events), n)
	}
	return events, nil
}

// putOnly writes the key named by -prefix: the demo's stock client.
func putOnly(r *run) error {
	c, err := r.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err := c.Put(r.ctx, r.prefix, r.value); err != nil {
		return err
	}
	fmt.Println("OK")
	return nil
}

// getOnly prints the key named by -prefix and its value.
func getOnly(r *run) error {
	c, err := r.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	got, err := c.Get(r.ctx, r.prefix)
	if err != nil {
		return err
	}
	for _, kv := range got.Kvs {
		fmt.Printf("%s\n%s\n", kv.Key, kv.Value)
	}
	return nil
}
