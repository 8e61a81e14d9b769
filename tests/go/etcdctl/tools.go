//go:build tools

// Package tools pins the stock etcdctl that the tests and the demo drive:
//
//	go build -o etcdctl go.etcd.io/etcd/etcdctl/v3
package tools

import _ "go.etcd.io/etcd/etcdctl/v3"
