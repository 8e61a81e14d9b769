//! etcd's error table: the one place where the strings stand that clients match on.
//!
//! clientv3 maps a status to its typed error by the exact message (etcd `api/v3rpc/rpctypes/error.go`), so code and text must
//! both be right. Errors that are kvasir's own say what is wrong and what to do, and carry the nearest code.

use tonic::{Code, Status};

macro_rules! errors {
    ($($(#[$doc:meta])* $name:ident = $code:ident, $text:literal;)*) => {
        /// Why a request was refused, with etcd's code and text.
        #[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
        pub enum Error {
            $(#[doc = $text] $(#[$doc])* #[error($text)] $name,)*
            /// A request that etcd has no words for: names the field and the remedy.
            #[error("{0}")]
            Invalid(String),
            /// A state that forbids the request: says which, and what would allow it.
            #[error("{0}")]
            Precondition(String),
            /// Something that is not there, by name.
            #[error("{0}")]
            Missing(String),
            /// A bound that the request exceeds, with the bound's value.
            #[error("{0}")]
            Exhausted(String),
            /// A fault of this node; the text is for its operator.
            #[error("{0}")]
            Internal(String),
            /// An error of etcd's lock service, which clients see as `Unknown`.
            #[error("{0}")]
            Unknown(String),
        }

        impl Error {
            /// The error that a peer sent as its code and text.
            pub fn from_wire(code: Code, text: &str) -> Self {
                match text {
                    $($text => Self::$name,)*
                    _ => match code {
                        Code::InvalidArgument => Self::Invalid(text.to_owned()),
                        Code::FailedPrecondition => Self::Precondition(text.to_owned()),
                        Code::NotFound => Self::Missing(text.to_owned()),
                        Code::ResourceExhausted => Self::Exhausted(text.to_owned()),
                        Code::Unknown => Self::Unknown(text.to_owned()),
                        _ => Self::Internal(text.to_owned()),
                    },
                }
            }

            /// The gRPC code that goes with the text.
            pub fn code(&self) -> Code {
                match self {
                    $(Self::$name => Code::$code,)*
                    Self::Invalid(_) => Code::InvalidArgument,
                    Self::Precondition(_) => Code::FailedPrecondition,
                    Self::Missing(_) => Code::NotFound,
                    Self::Exhausted(_) => Code::ResourceExhausted,
                    Self::Internal(_) => Code::Internal,
                    Self::Unknown(_) => Code::Unknown,
                }
            }
        }
    };
}

errors! {
    EmptyKey = InvalidArgument, "etcdserver: key is not provided";
    KeyNotFound = InvalidArgument, "etcdserver: key not found";
    ValueProvided = InvalidArgument, "etcdserver: value is provided";
    LeaseProvided = InvalidArgument, "etcdserver: lease is provided";
    TooManyOps = InvalidArgument, "etcdserver: too many operations in txn request";
    DuplicateKey = InvalidArgument, "etcdserver: duplicate key given in txn request";
    InvalidClientApiVersion = InvalidArgument, "etcdserver: invalid client api version";
    InvalidSortOption = InvalidArgument, "etcdserver: invalid sort option";
    BadMemberUrls = InvalidArgument, "etcdserver: given member URLs are invalid";
    RequestTooLarge = InvalidArgument, "etcdserver: request is too large";
    Compacted = OutOfRange, "etcdserver: mvcc: required revision has been compacted";
    FutureRevision = OutOfRange, "etcdserver: mvcc: required revision is a future revision";
    LeaseTtlTooLarge = OutOfRange, "etcdserver: too large lease TTL";
    NoSpace = ResourceExhausted, "etcdserver: mvcc: database space exceeded";
    /// On the wire etcd sends this one as `Unknown`.
    TooManyRequests = Unknown, "etcdserver: too many requests";
    LeaseNotFound = NotFound, "etcdserver: requested lease not found";
    LeaseExists = FailedPrecondition, "etcdserver: lease already exists";
    MemberNotFound = NotFound, "etcdserver: member not found";
    MemberExists = FailedPrecondition, "etcdserver: member ID already exist";
    PeerUrlExists = FailedPrecondition, "etcdserver: Peer URLs already exists";
    UnhealthyForReconfiguration = FailedPrecondition, "etcdserver: re-configuration failed due to not enough started members";
    TooManyLearners = FailedPrecondition, "etcdserver: too many learner members in cluster";
    LearnerNotReady = FailedPrecondition, "etcdserver: can only promote a learner member which is in sync with leader";
    NotForLearner = FailedPrecondition, "etcdserver: rpc not supported for learner";
    NotLearner = FailedPrecondition, "etcdserver: can only promote a learner member";
    BadLeaderTransferee = FailedPrecondition, "etcdserver: bad leader transferee";
    NotLeader = FailedPrecondition, "etcdserver: not leader";
    NotCapable = FailedPrecondition, "etcdserver: not capable";
    PermissionDenied = PermissionDenied, "etcdserver: permission denied";
    NoLeader = Unavailable, "etcdserver: no leader";
    LeaderChanged = Unavailable, "etcdserver: leader changed";
    Stopped = Unavailable, "etcdserver: server stopped";
    Timeout = Unavailable, "etcdserver: request timed out";
    TimeoutWaitingApplied = Unavailable, "etcdserver: request timed out, waiting for the applied index took too long";
    UnhealthyCluster = Unavailable, "etcdserver: unhealthy cluster";
    Canceled = Cancelled, "etcdserver: request canceled";
    Corrupt = DataLoss, "etcdserver: corrupt cluster";
}

impl From<Error> for Status {
    fn from(error: Error) -> Self {
        Status::new(error.code(), error.to_string())
    }
}
