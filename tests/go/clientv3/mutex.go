// Mutexes of the concurrency package: handed over, fair, and shared with a plugin's task.
package main

import (
	"context"
	"fmt"
	"sort"
	"strings"
	"time"
)

// contender is one session with its mutex.
type contender struct {
	session *session
	mutex   *mutex
}

func (r *run) contend(c *client, name string) (*contender, error) {
	s, err := newSession(c, withSessionTTL(10))
	if err != nil {
		return nil, fmt.Errorf("opening a session: %w", err)
	}
	return &contender{session: s, mutex: newMutex(s, name)}, nil
}

// mutexHandover: s1 has the lock, s2 waits, s1 unlocks, s2 gets it.
func mutexHandover(r *run) error {
	c, err := r.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	one, err := r.contend(c, r.lock)
	if err != nil {
		return err
	}
	defer one.session.Close()
	two, err := r.contend(c, r.lock)
	if err != nil {
		return err
	}
	defer two.session.Close()

	if err := one.mutex.Lock(r.ctx); err != nil {
		return err
	}
	say("s1 has the lock: %s", one.mutex.Key())
	acquired := make(chan error, 1)
	go func() { acquired <- two.mutex.Lock(r.ctx) }()
	if err := waitForKeys(r.ctx, c, r.lock, 2); err != nil {
		return err
	}
	select {
	case err := <-acquired:
		return fmt.Errorf("s2 got the lock while s1 had it (%v)", err)
	case <-time.After(500 * time.Millisecond):
		say("s2 waits")
	}
	if err := one.mutex.Unlock(r.ctx); err != nil {
		return err
	}
	say("s1 unlocked")
	if err := <-acquired; err != nil {
		return err
	}
	say("s2 has the lock: %s", two.mutex.Key())
	return two.mutex.Unlock(r.ctx)
}

// mutexFairness: three waiters get the lock in the order in which they came.
func mutexFairness(r *run) error {
	c, err := r.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	holder, err := r.contend(c, r.lock)
	if err != nil {
		return err
	}
	defer holder.session.Close()
	if err := holder.mutex.Lock(r.ctx); err != nil {
		return err
	}
	served := make(chan int, 3)
	failed := make(chan error, 3)
	for i := 1; i <= 3; i++ {
		waiter, err := r.contend(c, r.lock)
		if err != nil {
			return err
		}
		defer waiter.session.Close()
		go func() {
			if err := waiter.mutex.Lock(r.ctx); err != nil {
				failed <- err
				return
			}
			served <- i
			failed <- waiter.mutex.Unlock(r.ctx)
		}()
		// The next comes only when this one stands in the queue.
		if err := waitForKeys(r.ctx, c, r.lock, i+1); err != nil {
			return err
		}
		say("waiter %d came", i)
	}
	if err := holder.mutex.Unlock(r.ctx); err != nil {
		return err
	}
	for i := 1; i <= 3; i++ {
		if err := <-failed; err != nil {
			return err
		}
		got := <-served
		say("waiter %d served", got)
		if got != i {
			return fmt.Errorf("waiter %d was served in place of %d", got, i)
		}
	}
	return nil
}

// exclusion takes the lock -rounds times while somebody else, who writes under -writes, takes it too. From the history of
// the lock's keys follows who had it at each revision: every write of the other's fell in a time when it was not ours.
func exclusion(r *run) error {
	if r.writes == "" {
		return fmt.Errorf("-writes is needed")
	}
	c, err := r.connect()
	if err != nil {
		return err
	}
	defer c.Close()
	ours, err := r.contend(c, r.lock)
	if err != nil {
		return err
	}
	defer ours.session.Close()
	now, err := c.Get(r.ctx, r.lock, withPrefix())
	if err != nil {
		return err
	}
	owners := newQueue()
	for _, kv := range now.Kvs {
		owners.put(string(kv.Key), kv.CreateRevision)
	}
	watching, stop := context.WithCancel(r.ctx)
	defer stop()
	locks := c.Watch(watching, r.lock, withPrefix(), withRev(now.Header.Revision+1))
	writes := c.Watch(watching, r.writes, withPrefix(), withRev(now.Header.Revision+1))

	mine := ""
	for round := 1; round <= r.rounds; round++ {
		// The other one must have had its turn, or this proves nothing: wait for one write of its between two rounds.
		if err := ours.mutex.Lock(r.ctx); err != nil {
			return err
		}
		mine = ours.mutex.Key()
		held, err := c.Get(r.ctx, mine)
		if err != nil {
			return err
		}
		if len(held.Kvs) != 1 {
			return fmt.Errorf("round %d: we have the lock, but its key %s is not there", round, mine)
		}
		time.Sleep(150 * time.Millisecond) // the time we hold it: the other one has to wait it out
		if err := ours.mutex.Unlock(r.ctx); err != nil {
			return err
		}
		say("round %d: held %s from revision %d", round, mine, held.Header.Revision)
		time.Sleep(50 * time.Millisecond)
	}
	// A key of our own closes the history: everything below its revision has been seen when it has been seen.
	last, err := c.Put(r.ctx, r.writes+"end-of-exclusion", "")
	if err != nil {
		return err
	}
	endLock, err := c.Put(r.ctx, r.lock+"/end-of-exclusion", "")
	if err != nil {
		return err
	}
	lockEvents, err := until(r.ctx, locks, endLock.Header.Revision)
	if err != nil {
		return err
	}
	writeEvents, err := until(r.ctx, writes, last.Header.Revision)
	if err != nil {
		return err
	}
	for _, key := range []string{r.writes + "end-of-exclusion", r.lock + "/end-of-exclusion"} {
		if _, err := c.Delete(r.ctx, key); err != nil {
			return err
		}
	}
	others := 0
	next := 0
	for _, w := range writeEvents {
		for next < len(lockEvents) && lockEvents[next].Kv.ModRevision <= w.Kv.ModRevision {
			owners.apply(lockEvents[next])
			next++
		}
		if string(w.Kv.Key) == r.writes+"end-of-exclusion" {
			continue
		}
		others++
		if owner := owners.front(); owner == "" || owner == mine {
			return fmt.Errorf("%s was written at revision %d while the lock belonged to %q (ours is %q)",
				w.Kv.Key, w.Kv.ModRevision, owner, mine)
		}
	}
	if others == 0 {
		return fmt.Errorf("nobody wrote under %s: nothing was excluded", r.writes)
	}
	say("%d rounds of ours, %d writes of the other's, none while the lock was ours", r.rounds, others)
	return nil
}

// queue is who stands at a lock, by the revision at which each came.
type queue struct{ came map[string]int64 }

func newQueue() *queue { return &queue{came: map[string]int64{}} }

func (q *queue) put(key string, createRevision int64) { q.came[key] = createRevision }

func (q *queue) apply(e *event) {
	if e.Type == eventPut {
		q.put(string(e.Kv.Key), e.Kv.CreateRevision)
	} else {
		delete(q.came, string(e.Kv.Key))
	}
}

func (q *queue) front() string {
	keys := make([]string, 0, len(q.came))
	for key := range q.came {
		keys = append(keys, key)
	}
	sort.Slice(keys, func(a, b int) bool { return q.came[keys[a]] < q.came[keys[b]] })
	if len(keys) == 0 {
		return ""
	}
	return keys[0]
}

// until collects events up to the one at this revision.
func until(ctx context.Context, from watchChan, revision int64) ([]*event, error) {
	var events []*event
	for {
		select {
		case resp, open := <-from:
			if !open {
				return nil, fmt.Errorf("the watch ended before revision %d", revision)
			}
			if err := resp.Err(); err != nil {
				return nil, err
			}
			events = append(events, resp.Events...)
			if n := len(events); n > 0 && events[n-1].Kv.ModRevision >= revision {
				return events, nil
			}
		case <-ctx.Done():
			return nil, fmt.Errorf("revision %d never came: %w", revision, ctx.Err())
		}
	}
}

// waitForKeys waits until this many contenders stand in the lock's queue.
func waitForKeys(ctx context.Context, c *client, name string, want int) error {
	for {
		got, err := c.Get(ctx, strings.TrimSuffix(name, "/")+"/", withPrefix())
		if err != nil {
			return err
		}
		if len(got.Kvs) >= want {
			return nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("%d of %d contenders: %w", len(got.Kvs), want, ctx.Err())
		}
	}
}
