// The client library under test: the old import path. Everything else in this program is the same file for both paths.
package main

import (
	"go.etcd.io/etcd/clientv3"
	"go.etcd.io/etcd/clientv3/concurrency"
)

const importPath = "go.etcd.io/etcd/clientv3"

type (
	client    = clientv3.Client
	config    = clientv3.Config
	event     = clientv3.Event
	watchChan = clientv3.WatchChan
	mutex     = concurrency.Mutex
	session   = concurrency.Session
)

var (
	newClient      = clientv3.New
	withLease      = clientv3.WithLease
	withPrefix     = clientv3.WithPrefix
	withRev        = clientv3.WithRev
	withCreated    = clientv3.WithCreatedNotify
	newSession     = concurrency.NewSession
	withSessionTTL = concurrency.WithTTL
	newMutex       = concurrency.NewMutex
)

const (
	eventPut    = clientv3.EventTypePut
	eventDelete = clientv3.EventTypeDelete
)
