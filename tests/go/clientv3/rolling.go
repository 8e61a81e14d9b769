// Writers that go on whatever happens to the servers, and say of each write what became of it.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	rollingWriters = 8
	// Longer than any election: who gets no answer for so long has been forgotten.
	rollingPatience = 30 * time.Second
	rollingRest     = 5 * time.Millisecond
)

// rolling writes keys, each once, until its standard input ends. It prints "ack KEY", "unknown KEY" or "error KEY ..." for each.
func rolling(r *run) error {
	c, err := r.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	done := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		close(done)
	}()
	var printing sync.Mutex
	tell := func(format string, args ...any) {
		printing.Lock()
		defer printing.Unlock()
		fmt.Printf(format+"\n", args...)
	}
	var writers sync.WaitGroup
	for writer := 0; writer < rollingWriters; writer++ {
		writers.Add(1)
		go func(writer int) {
			defer writers.Done()
			for nth := 0; ; nth++ {
				select {
				case <-done:
					return
				case <-time.After(rollingRest):
				}
				key := fmt.Sprintf("%s%d/%d", r.prefix, writer, nth)
				ctx, cancel := context.WithTimeout(r.ctx, rollingPatience)
				begin := time.Since(started)
				_, err := c.Put(ctx, key, key)
				cancel()
				switch {
				case err == nil:
					tell("ack %s", key)
				case codeOf(err) == codes.Unavailable:
					tell("unknown %s", key)
				default:
					tell("error %s begun after %v: %v: %v", key, begin, codeOf(err), err)
				}
			}
		}(writer)
	}
	writers.Wait()
	return nil
}

// codeOf finds the code in an error of the client's, which wraps those of gRPC in its own.
func codeOf(err error) codes.Code {
	var coded interface{ Code() codes.Code }
	if errors.As(err, &coded) {
		return coded.Code()
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return codes.DeadlineExceeded
	}
	return status.Code(err)
}
