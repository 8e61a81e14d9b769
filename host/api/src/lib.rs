//! What every layer of kvasir speaks: the messages of our own `.proto` files, etcd's error table and the limits.
//!
//! **Invariant:** nothing here does I/O, reads a clock or knows another crate of kvasir.

pub mod error;
pub mod limits;
pub mod metrics;

/// etcd's messages and services (`etcdserverpb`): the wire contract with every etcd client.
#[allow(missing_docs, unused_qualifications, unreachable_pub, clippy::all)]
pub mod etcdserverpb {
    tonic::include_proto!("etcdserverpb");
}

/// etcd's stored unit and its watch event (`mvccpb`).
#[allow(missing_docs, unused_qualifications, unreachable_pub, clippy::all)]
pub mod mvccpb {
    tonic::include_proto!("mvccpb");
}

/// etcd's lock service (`v3lockpb`).
#[allow(missing_docs, unused_qualifications, unreachable_pub, clippy::all)]
pub mod v3lockpb {
    tonic::include_proto!("v3lockpb");
}

/// kvasir's own packages.
#[allow(missing_docs, unused_qualifications, unreachable_pub, clippy::all)]
pub mod kvasir {
    /// What the raft log carries.
    pub mod command {
        tonic::include_proto!("kvasir.command");
    }
    /// What nodes say to each other about who they are.
    pub mod peer {
        tonic::include_proto!("kvasir.peer");
    }
    /// The operator's service of the cluster.
    pub mod cluster {
        /// Its first version.
        pub mod v1 {
            tonic::include_proto!("kvasir.cluster.v1");
        }
    }
    /// The operator's plugin service.
    pub mod plugin {
        /// Its first version.
        pub mod v1 {
            tonic::include_proto!("kvasir.plugin.v1");
        }
    }
}

/// The etcd release whose API this is: clients take their abilities from it.
pub const ETCD_VERSION: &str = "3.6.0";

pub use error::Error;
pub use kvasir::command;
