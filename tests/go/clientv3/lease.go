// Leases: a key that goes with its lease, and one that KeepAlive holds.
package main

import (
	"context"
	"fmt"
	"time"
)

// leaseExpiry grants a lease of 5 seconds and puts a key with it: the key is there at once and gone after.
func leaseExpiry(r *run) error {
	c, err := r.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	key := r.prefix + "leased"
	// The server grants somewhere between the request and its answer: what is sure is that it was not before the request.
	asked := time.Now()
	lease, err := c.Grant(r.ctx, 5)
	if err != nil {
		return err
	}
	put, err := c.Put(r.ctx, key, "for five seconds", withLease(lease.ID))
	if err != nil {
		return err
	}
	gone := c.Watch(r.ctx, key, withRev(put.Header.Revision+1))
	got, err := c.Get(r.ctx, key)
	if err != nil {
		return err
	}
	if len(got.Kvs) != 1 || got.Kvs[0].Lease != int64(lease.ID) {
		return fmt.Errorf("the key is not there with its lease: %v", got.Kvs)
	}
	events, err := collect(r.ctx, gone, 1)
	if err != nil {
		return fmt.Errorf("the key did not go: %w", err)
	}
	lived := time.Since(asked)
	if events[0].Type != eventDelete {
		return fmt.Errorf("saw %v, want the key deleted", events[0])
	}
	if lived < 5*time.Second {
		return fmt.Errorf("a lease of 5 s ended after %v", lived)
	}
	got, err = c.Get(r.ctx, key)
	if err != nil {
		return err
	}
	if len(got.Kvs) != 0 {
		return fmt.Errorf("still there: %v", got.Kvs)
	}
	say("gone %.1fs after it was asked for", lived.Seconds())
	return nil
}

// keepAlive holds a key for four TTLs with KeepAlive, printing each TTL, then lets go and sees the key end.
func keepAlive(r *run) error {
	c, err := r.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	const ttlSeconds = 3
	key := r.prefix + "kept"
	lease, err := c.Grant(r.ctx, ttlSeconds)
	if err != nil {
		return err
	}
	if _, err := c.Put(r.ctx, key, "kept", withLease(lease.ID)); err != nil {
		return err
	}
	until := time.Now().Add(4 * ttlSeconds * time.Second)
	keeping, stop := context.WithCancel(r.ctx)
	defer stop()
	answers, err := c.KeepAlive(keeping, lease.ID)
	if err != nil {
		return err
	}
	renewals := 0
	for time.Now().Before(until) {
		answer, open := <-answers
		if !open || answer == nil {
			return fmt.Errorf("KeepAlive ended after %d renewals", renewals)
		}
		renewals++
		say("ttl %d", answer.TTL)
		if answer.TTL != ttlSeconds {
			return fmt.Errorf("granted %d s, renewed to %d s", ttlSeconds, answer.TTL)
		}
	}
	got, err := c.Get(r.ctx, key)
	if err != nil {
		return err
	}
	if len(got.Kvs) != 1 {
		return fmt.Errorf("the key is gone although its lease was kept alive")
	}
	stop()
	gone := c.Watch(r.ctx, key, withRev(got.Header.Revision+1))
	if _, err := collect(r.ctx, gone, 1); err != nil {
		return fmt.Errorf("nobody keeps the lease any more, but the key stays: %w", err)
	}
	say("kept for %d renewals, gone when let go", renewals)
	return nil
}
