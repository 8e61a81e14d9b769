//! The bounds on what users bring, in one file: a queue, a loop over user data, a request's wait, a cache or a buffer has its limit
//! here. How often a task of our own looks at something, and what a single function cuts its work into, stands beside it.
//!
//! Units are in the names. Where etcd has the same limit, the value is etcd's default.

/// Largest client request, encoded (etcd `--max-request-bytes`).
pub const REQUEST_BYTES_MAX: usize = 1_572_864;
/// What a gRPC message may weigh on the way in: a request and its envelope.
pub const GRPC_RECV_BYTES_MAX: usize = REQUEST_BYTES_MAX + 512 * 1024;
/// Operations in a transaction: compares, success and failure are each counted (etcd `--max-txn-ops`).
pub const TXN_OPS_MAX: usize = 128;
/// Compares and operations of a transaction in all, over both branches of every level.
pub const TXN_OPS_TOTAL_MAX: usize = 4_096;
/// Keys that the compares, ranges and deletes of a transaction may look at between them, a key once for each that looks at it.
pub const TXN_KEYS_MAX: u64 = 262_144;
/// Bytes of keys and values that a transaction may ask for: in ranges, and as previous values.
pub const TXN_BYTES_MAX: u64 = 64 * 1024 * 1024;
/// What a range at an old revision counts in keys in a transaction on top of what it finds: it walks over deleted keys, too.
pub const TXN_OLD_RANGE_KEYS: u64 = 2_048;
/// Levels of nested transactions.
pub const TXN_DEPTH_MAX: usize = 8;
/// Longest lease, in seconds (etcd).
pub const LEASE_TTL_MAX_S: i64 = 9_000_000_000;
/// Shortest lease granted, in seconds; shorter ones are raised to it (etcd with its default election timeout).
pub const LEASE_TTL_MIN_S: i64 = 2;
/// Leases in one renewal entry: what fits a request with room to spare.
pub const LEASE_RENEW_BATCH_MAX: usize = 10_000;
/// How much longer than its TTL a lease lives at most, for the sake of a grant or renewal that is slow to commit; what takes longer
/// is answered with a timeout.
pub const LEASE_SLACK_MS_MAX: u64 = 8_192;
/// How much longer than its TTL a lease lives at least.
pub const LEASE_SLACK_MS_MIN: u64 = 128;
/// Leases that a plugin may have at once.
pub const LEASES_PER_PLUGIN_MAX: usize = 1_024;
/// Leases in one revoke entry.
pub const LEASE_REVOKE_BATCH_MAX: usize = 1_000;
/// Keys that one expiry entry may delete, but one lease is always revoked whole.
pub const LEASE_REVOKE_KEYS_MAX: usize = 10_000;
/// How often the leader looks for expired leases.
pub const LEASE_SCAN_INTERVAL_MS: u64 = 500;
/// While leases are outstanding a stamp is replicated at least so often.
pub const LEASE_STAMP_INTERVAL_MS: u64 = 2_000;
/// What a live key counts in logical bytes on top of its key and value (etcd's quota counts a put the same).
pub const KEY_OVERHEAD_BYTES: u64 = 256;
/// What an old version counts in logical bytes until it is compacted: its place in the index.
pub const VERSION_OVERHEAD_BYTES: u64 = 96;
/// What a lease counts in logical bytes (etcd).
pub const LEASE_OVERHEAD_BYTES: u64 = 64;
/// Values up to this size are copied out of the command they came with; so are larger ones that are less than half of it.
pub const VALUE_COPY_BYTES_MAX: usize = 4 * 1024;
/// Bytes of history between two marks, from which apply tells how much history a revision's distance is.
pub const HISTORY_MARK_BYTES: u64 = 1024 * 1024;
/// Logical bytes stored before writes are refused with NOSPACE, unless a quarter of RAM is less.
pub const QUOTA_BYTES_DEFAULT: u64 = 2 * 1024 * 1024 * 1024;

/// Free space on the data folder's disk below which NOSPACE is raised, so that there is room left to say so and to compact.
pub const DISK_FREE_BYTES_MIN: u64 = 256 * 1024 * 1024;
/// Free space from which there is room enough again to put the ballast aside.
pub const DISK_FREE_BYTES_AMPLE: u64 = 2 * DISK_FREE_BYTES_MIN;
/// How long the leader waits for the members to say what they hold ...
pub const CORRUPT_CHECK_TIMEOUT_MS: u64 = 600_000;
/// ... and for how long before it asks again.
pub const CORRUPT_CHECK_PAUSE_MS: u64 = 250;
/// How often free space is looked at.
pub const DISK_LOOK_INTERVAL_MS: u64 = 5_000;

/// Commands waiting to be proposed.
pub const PROPOSAL_QUEUE_MAX: usize = 16_384;
/// Commands handed to raft at once.
pub const PROPOSAL_BATCH_MAX: usize = 1_024;
/// Bytes of commands proposed and not yet answered.
pub const PROPOSAL_PENDING_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Linearizable reads waiting for the next ReadIndex round.
pub const READ_QUEUE_MAX: usize = 65_536;
/// Lease renewals waiting for the next entry that carries them.
pub const LEASE_RENEW_QUEUE_MAX: usize = 65_536;
/// Renewals of one keepalive stream under way at once; the next are read once these are answered.
pub const KEEPALIVES_PER_STREAM_MAX: usize = 1_024;
/// Appends waiting for the log's writer thread.
pub const LOG_QUEUE_MAX: usize = 4_096;
/// Bytes of entries waiting for the log's writer thread.
pub const LOG_QUEUE_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Recent log entries kept in memory for followers and for apply, in bytes.
pub const LOG_CACHE_BYTES: usize = 64 * 1024 * 1024;
/// Size of a log segment.
pub const LOG_SEGMENT_BYTES: u64 = 64 * 1024 * 1024;
/// A log record's payload: a request with its envelope.
pub const LOG_RECORD_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Bytes of a command: a record of the log without what is put around it.
pub const COMMAND_BYTES_MAX: usize = LOG_RECORD_BYTES_MAX - 1_024;
/// Applied rows not yet in the state file before proposals are refused with "too many requests".
pub const TAIL_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Rows in one (non-durable) commit of the state file.
pub const STATE_COMMIT_ROWS_MAX: usize = 8_192;
/// Rows of history deleted in one commit of the state file.
pub const STATE_DELETE_ROWS_MAX: usize = 4_096;
/// How long applied rows gather in memory before they are moved to the state file.
pub const STATE_COMMIT_LINGER_MS: u64 = 50;
/// A snapshot file is written in blocks of about so many bytes ...
pub const SNAPSHOT_BLOCK_BYTES: usize = 256 * 1024;
/// ... and a block that claims more than this is refused.
pub const SNAPSHOT_BLOCK_BYTES_MAX: usize = 16 * 1024 * 1024;
/// How long an exported snapshot stays after it was last sent of, and the log behind it with it, so that a transfer that broke goes on
/// and the member that was brought up finds what comes next (etcd keeps the log for as long).
pub const SNAPSHOT_HOLD_MS: u64 = 30_000;
/// ... unless the log weighs more than this.
pub const SNAPSHOT_HOLD_LOG_BYTES_MAX: u64 = 2 * 1024 * 1024 * 1024;
/// How long the part of a snapshot stays that has come of a transfer that broke.
pub const SNAPSHOT_PART_KEEP_MS: u64 = 600_000;
/// Snapshots that clients may be saving from a node at once: each is a copy of the state on the data folder's disk meanwhile.
pub const SNAPSHOT_SAVES_MAX: usize = 2;
/// One message of a snapshot that is being saved.
pub const SNAPSHOT_PIECE_BYTES: usize = 256 * 1024;
/// How long a client that saves a snapshot may take nothing.
pub const SNAPSHOT_PIECE_TIMEOUT_MS: u64 = 30_000;
/// Room kept aside on the data folder's disk, given back to the node when the disk is full.
pub const BALLAST_BYTES: u64 = 16 * 1024 * 1024;
/// A durable checkpoint is made after so many bytes of history ...
pub const CHECKPOINT_BYTES: u64 = 64 * 1024 * 1024;
/// ... or so long after the first write that it will cover.
pub const CHECKPOINT_INTERVAL_MS: u64 = 30_000;
/// Log entries kept below the last durable checkpoint.
pub const LOG_KEEP_ENTRIES: u64 = 10_000;
/// Bytes of log entries kept below the last durable checkpoint.
pub const LOG_KEEP_BYTES: u64 = 256 * 1024 * 1024;
/// Log entries kept by a node that has nobody to send them to.
pub const LOG_KEEP_ENTRIES_ALONE: u64 = 1_000;
/// redb's page cache.
pub const STATE_CACHE_BYTES: usize = 64 * 1024 * 1024;

/// Keys read under one hold of the state's lock by a range.
pub const RANGE_SLICE_KEYS: usize = 4_096;
/// Times that a range of the present begins anew because its revision was compacted between two slices, before it holds the lock
/// for the whole of it.
pub const RANGE_RESTARTS_MAX: usize = 4;
/// Keys looked at under one hold of the state's lock after a compaction ...
pub const COMPACT_SLICE_KEYS: usize = 1_024;
/// ... and versions that are trimmed of them.
pub const COMPACT_SLICE_VERSIONS: usize = 8_192;
/// Rows that may wait for deletion from the state file before more are trimmed from memory.
pub const COMPACT_PENDING_ROWS_MAX: usize = 8 * COMPACT_SLICE_VERSIONS;
/// Recent changes the watch hub keeps in memory, in bytes.
pub const WATCH_RING_BYTES_MAX: usize = 64 * 1024 * 1024;
/// Bytes of events in one watch response before a new one is started, at a revision's end.
pub const WATCH_RESPONSE_BYTES: usize = 1024 * 1024;
/// Responses waiting on one watch stream; a full stream reads history later instead.
pub const WATCH_STREAM_QUEUE_MAX: usize = 128;
/// Bytes of responses waiting on one watch stream; one response is taken whatever it weighs.
pub const WATCH_STREAM_QUEUE_BYTES_MAX: usize = 8 * 1024 * 1024;
/// Bytes of responses waiting on all watch streams together; past it a stream takes one response at a time.
pub const WATCH_QUEUES_BYTES_MAX: usize = 256 * 1024 * 1024;
/// Events matched with synced watchers under one hold of the hub's lock.
pub const WATCH_DISPATCH_EVENTS_MAX: usize = 4_096;
/// Bytes of events matched with synced watchers under one hold of the hub's lock.
pub const WATCH_DISPATCH_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Events within which a watcher that catches up meets the head under the hub's lock.
pub const WATCH_MEET_EVENTS_MAX: usize = 1_024;
/// Bytes of events within which a watcher that catches up meets the head under the hub's lock.
pub const WATCH_MEET_BYTES_MAX: usize = 1024 * 1024;
/// Watchers of a stream that are matched with a piece of history at once.
pub const WATCH_CATCH_UP_WATCHERS_MAX: usize = 1_024;
/// Reads of history for watchers under way at once; the other streams wait.
pub const WATCH_HISTORY_READS_MAX: usize = 4;
/// Rows of history read at once for watchers and triggers that are behind.
pub const HISTORY_READ_ROWS_MAX: usize = 4_096;
/// Bytes of history read at once for watchers and triggers that are behind.
pub const HISTORY_READ_BYTES_MAX: usize = 4 * 1024 * 1024;
/// Reads of the state file that one call for a trigger's history may make before it answers with what it has.
pub const HISTORY_PIECES_MAX: usize = 16;
/// Watchers on one stream.
pub const WATCHERS_PER_STREAM_MAX: usize = 100_000;
/// How often an idle watcher that asked for it is told the revision.
pub const WATCH_PROGRESS_INTERVAL_MS: u64 = 10 * 60 * 1000;

/// How long a client's request may take in all (etcd: 5 s and two election timeouts).
pub const REQUEST_TIMEOUT_MS: u64 = 7_000;
/// Callers waiting for locks.
pub const LOCK_WAITERS_MAX: usize = 65_536;
/// TTL of the lease that `Lock` grants when it is given none, in seconds (etcd).
pub const LOCK_LEASE_TTL_S: i64 = 60;

/// Largest component.
pub const COMPONENT_BYTES_MAX: u64 = 32 * 1024 * 1024;
/// One replicated piece of a component.
pub const BLOB_CHUNK_BYTES: usize = 256 * 1024;
/// Components that no plugin uses yet, whole or still arriving; the oldest goes when another begins.
pub const BLOBS_UNUSED_MAX: usize = 4;
/// Largest manifest.
pub const MANIFEST_BYTES_MAX: usize = 64 * 1024;
/// Installed plugins.
pub const PLUGINS_MAX: usize = 256;
/// Triggers of one plugin.
pub const TRIGGERS_PER_PLUGIN_MAX: usize = 16;
/// Dead letters kept per trigger before the trigger halts.
pub const DEAD_LETTERS_PER_TRIGGER_MAX: usize = 1_000;
/// History held back from compaction for plugins' cursors, in revisions ...
pub const CURSOR_HOLD_REVISIONS_MAX: u64 = 1_000_000;
/// ... and in bytes; past either the trigger is lost and must resync.
pub const CURSOR_HOLD_BYTES_MAX: u64 = 512 * 1024 * 1024;
/// Start of an event's key that is kept with its dead letter, in bytes.
pub const DEAD_LETTER_KEY_BYTES_MAX: usize = 4 * 1024;
/// Dead letters in one answer.
pub const DEAD_LETTERS_LISTED_MAX: usize = 1_000;
/// Error text kept with a dead letter, in bytes.
pub const DEAD_LETTER_ERROR_BYTES_MAX: usize = 4 * 1024;
/// Operations in one effect of a plugin.
pub const EFFECT_OPS_MAX: usize = 4_096;
/// Guards of one effect of a plugin for what it read.
pub const EFFECT_GUARDS_MAX: usize = 4_096;
/// Locks that guard one effect: a task's own, and those that its run took besides.
pub const EFFECT_LOCK_GUARDS_MAX: usize = 65;
/// Keys that all range guards of one effect may cover.
pub const EFFECT_GUARD_KEYS_MAX: u64 = 65_536;
/// Longest chain of plugins that write because of each other's writes.
pub const CAUSALITY_DEPTH_MAX: u32 = 8;
/// Log lines kept per plugin.
pub const PLUGIN_LOG_LINES_MAX: usize = 1_000;
/// Longest log line of a plugin, in bytes.
pub const PLUGIN_LOG_LINE_BYTES_MAX: usize = 4 * 1024;
/// Log lines a plugin may write per second.
pub const PLUGIN_LOG_LINES_PER_S: u32 = 1_000;

/// Client connections open at once; more wait to be accepted.
pub const CONNECTIONS_MAX: usize = 16_384;
/// A client that has connected says its first request's head within this time.
pub const REQUEST_HEAD_TIMEOUT_MS: u64 = 30_000;
/// A request that is one message arrives within this time once its head has.
pub const REQUEST_BODY_TIMEOUT_MS: u64 = 30_000;
/// What a client may send on one stream before the server has read it.
pub const STREAM_WINDOW_BYTES: u32 = 1024 * 1024;
/// What a client may send on all streams of a connection before the server has read it.
pub const CONNECTION_WINDOW_BYTES: u32 = 8 * 1024 * 1024;
/// Streams that a client has reset before the server saw them; a client with more is disconnected.
pub const RESET_STREAMS_MAX: usize = 4_096;
/// How long requests under way may take to finish when the node stops.
pub const SHUTDOWN_DRAIN_MS: u64 = 5_000;
/// Components being received at once; each may hold `COMPONENT_BYTES_MAX` in memory.
pub const INSTALLS_MAX: usize = 2;
/// How long an upload may pause between two pieces.
pub const INSTALL_PIECE_TIMEOUT_MS: u64 = 30_000;

/// Join tokens kept at once.
pub const JOIN_TOKENS_MAX: usize = 1_024;
/// How long a join token is good for unless asked otherwise, in seconds.
pub const JOIN_TOKEN_TTL_S_DEFAULT: u64 = 3_600;
/// How long a join token may be good for at most, in seconds.
pub const JOIN_TOKEN_TTL_S_MAX: u64 = 30 * 24 * 3_600;
/// Addresses put into a join token.
pub const JOIN_TOKEN_ADDRESSES_MAX: usize = 8;
/// Authorities that a cluster may trust at once.
pub const AUTHORITIES_MAX: usize = 2;
/// Bytes of an authority's certificate.
pub const AUTHORITY_BYTES_MAX: usize = 8 * 1024;
/// Bytes of a member's name.
pub const MEMBER_NAME_BYTES_MAX: usize = 255;
/// Peer URLs, and client URLs, of a member.
pub const MEMBER_URLS_MAX: usize = 8;
/// Bytes of a member's URL.
pub const MEMBER_URL_BYTES_MAX: usize = 1_024;
/// How often a node looks after its certificate and at who was removed.
pub const IDENTITY_LOOK_INTERVAL_MS: u64 = 500;
/// How long a joining node asks the cluster before it gives up.
pub const JOIN_TIMEOUT_MS: u64 = 120_000;
