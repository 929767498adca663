//! What the programs tell about the host beside requests: samples of stacks, slow calls on files, lives of processes. Each record begins
//! with a time, a kind and a thread.

/// Frames of a stack that are copied, innermost first.
pub const USER_FRAMES: usize = 127;
pub const KERNEL_FRAMES: usize = 64;
/// Bytes of a thread's name (`comm`).
pub const NAME: usize = 16;
/// Bytes of the parts of a path, each ended by a zero; the room behind takes a last part whole.
pub const PATH: usize = 512;
pub const PART: usize = 256;
/// Bytes of an executable's path.
pub const TEXT: usize = 128;

/// What a record tells.
pub mod kind {
    /// A thread computes: one tick of the clock. [`super::Sample`].
    pub const ON_CPU: u32 = 1;
    /// A thread begins to wait. [`super::Sample`].
    pub const OFF_CPU: u32 = 2;
    /// A thread whose wait was told goes on. [`super::Wake`].
    pub const WAKE: u32 = 3;
    /// A slow call on a file. [`super::FileCall`].
    pub const FILE: u32 = 4;
    /// [`super::Life`], all of them.
    pub const START: u32 = 5;
    pub const EXEC: u32 = 6;
    pub const EXIT: u32 = 7;
    pub const SIGNAL: u32 = 8;
    pub const OOM: u32 = 9;
}

/// Kinds of calls on files.
pub mod operation {
    pub const READ: u32 = 1;
    pub const WRITE: u32 = 2;
    pub const SYNC: u32 = 3;
}

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Wake {
    /// `CLOCK_MONOTONIC`.
    pub time_ns: u64,
    pub kind: u32,
    pub thread: u32,
}

const _: () = assert!(size_of::<Wake>() == 16);

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Sample {
    pub time_ns: u64,
    pub kind: u32,
    pub thread: u32,
    /// The address space that user frames lie in; another one after each exec. 0: a thread of the kernel.
    pub space: u64,
    pub pid: u32,
    /// It was taken by a chance of so many in 2^32.
    pub odds: u32,
    pub user_bytes: u32,
    pub kernel_bytes: u32,
    pub name: [u8; NAME],
    pub kernel: [u64; KERNEL_FRAMES],
    pub user: [u64; USER_FRAMES],
}

const _: () = assert!(size_of::<Sample>() == 56 + 8 * (KERNEL_FRAMES + USER_FRAMES));

#[derive(Clone, Copy)]
#[repr(C)]
pub struct FileCall {
    /// When it returned.
    pub time_ns: u64,
    pub kind: u32,
    pub thread: u32,
    pub entered_ns: u64,
    /// What it returned: bytes, or an error below 0.
    pub result: i64,
    pub pid: u32,
    /// One of [`operation`].
    pub operation: u32,
    pub name: [u8; NAME],
    pub path_bytes: u32,
    pub reserved: u32,
    /// The name of the file, then those of the directories that it lies in, the nearest first.
    pub path: [u8; PATH + PART],
}

const _: () = assert!(size_of::<FileCall>() == 64 + PATH + PART);

#[derive(Clone, Copy)]
#[repr(C)]
pub struct Life {
    pub time_ns: u64,
    pub kind: u32,
    pub pid: u32,
    pub parent: u32,
    /// Of an exit what `wait` tells; of a signal its number.
    pub code: u32,
    /// When the process began.
    pub began_ns: u64,
    /// Who sent the signal.
    pub sender: u32,
    pub reserved: u32,
    pub name: [u8; NAME],
    pub sender_name: [u8; NAME],
    pub text: [u8; TEXT],
}

const _: () = assert!(size_of::<Life>() == 72 + TEXT);

/// Indices of the constants that the agent sets before it loads these programs.
pub mod constant {
    pub const TASK_PID: usize = 0;
    pub const TASK_TGID: usize = 1;
    pub const TASK_COMM: usize = 2;
    pub const TASK_PARENT: usize = 3;
    pub const TASK_EXIT_CODE: usize = 4;
    pub const TASK_START_TIME: usize = 5;
    pub const TASK_MM: usize = 6;
    pub const TASK_STATE: usize = 7;
    pub const TASK_SIGNAL: usize = 8;
    pub const SIGNAL_LIVE: usize = 9;
    pub const BPRM_FILENAME: usize = 10;
    pub const FILE_DENTRY: usize = 11;
    pub const FILE_MOUNT: usize = 12;
    pub const DENTRY_PARENT: usize = 13;
    pub const DENTRY_NAME: usize = 14;
    pub const VFSMOUNT_ROOT: usize = 15;
    pub const MOUNT_VFSMOUNT: usize = 16;
    pub const MOUNT_PARENT: usize = 17;
    pub const MOUNT_MOUNTPOINT: usize = 18;
    pub const NR_PREAD: usize = 19;
    pub const NR_PWRITE: usize = 20;
    pub const NR_PREADV: usize = 21;
    pub const NR_PWRITEV: usize = 22;
    pub const NR_PREADV2: usize = 23;
    pub const NR_PWRITEV2: usize = 24;
    pub const NR_FSYNC: usize = 25;
    pub const NR_FDATASYNC: usize = 26;
    /// Calls on files that take less are not told; microseconds.
    pub const FILE_LATENCY_US: usize = 27;
    pub const COUNT: usize = 28;
}
