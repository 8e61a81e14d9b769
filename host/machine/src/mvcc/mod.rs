//! Multi-version concurrency control: keys, their versions and what is asked of them, as etcd's `server/storage/mvcc` and
//! `server/etcdserver/txn` have it.

pub(crate) mod budget;
pub(crate) mod check;
pub(crate) mod compact;
pub(crate) mod index;
pub(crate) mod range;
pub(crate) mod txn;
pub(crate) mod write;
