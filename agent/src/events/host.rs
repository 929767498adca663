//! Records about the host become events: stacks of threads, slow calls on files, lives of processes. Leaves out: what is made of them
//! (`profile`, `incidents`).

#![expect(unsafe_code, reason = "records are read as the structures that the kernel side wrote")]

use bpf_abi::host::{self, Wake, kind, operation};

use super::Unusable;

/// What a thread does while it has a stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Doing {
    Computing,
    Waiting,
}

/// A thread and the functions that it is in.
#[derive(Debug, Clone, PartialEq)]
pub struct Stack {
    pub time: u64,
    pub doing: Doing,
    pub pid: u32,
    pub thread: u32,
    pub thread_name: String,
    /// The address space of the user frames: each exec makes another one. 0: a thread of the kernel.
    pub space: u64,
    /// It stands for so many, since not each was taken.
    pub weight: f64,
    /// Innermost first.
    pub kernel: Vec<u64>,
    pub user: Vec<u64>,
}

/// What was done with a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Read,
    Write,
    Sync,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileCall {
    pub entered: u64,
    pub time: u64,
    pub pid: u32,
    pub thread: u32,
    pub thread_name: String,
    pub operation: Operation,
    /// Bytes, or an error below 0.
    pub result: i64,
    /// Absolute, as the process sees it.
    pub path: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Life {
    pub time: u64,
    pub pid: u32,
    pub parent: u32,
    pub name: String,
    pub turn: Turn,
}

/// What happens to a process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Turn {
    Start,
    Exec {
        program: String,
    },
    Signal {
        number: u8,
        sender: u32,
        sender_name: String,
    },
    /// The kernel is about to kill it for memory.
    OutOfMemory,
    Exit {
        code: i32,
        signal: u8,
        /// Nanoseconds.
        lived: u64,
    },
}

/// What a record tells.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    Stack(Stack),
    /// A thread whose wait was told goes on.
    Wake {
        time: u64,
        thread: u32,
    },
    File(FileCall),
    Life(Life),
}

/// Reads one record.
pub fn read(record: &[u8]) -> Result<Event, Unusable> {
    let Wake { time_ns: time, kind, thread } = structure(record)?;
    match kind {
        kind::ON_CPU => stack(record, Doing::Computing),
        kind::OFF_CPU => stack(record, Doing::Waiting),
        kind::WAKE => Ok(Event::Wake { time, thread }),
        kind::FILE => file(record),
        kind::START..=kind::OOM => life(record),
        _ => Err(Unusable::Kind),
    }
}

/// Types of the contract that any bytes are a value of.
trait Plain: Copy {}
impl Plain for Wake {}
impl Plain for host::Sample {}
impl Plain for host::FileCall {}
impl Plain for host::Life {}

fn structure<T: Plain>(record: &[u8]) -> Result<T, Unusable> {
    let bytes = record.get(..size_of::<T>()).ok_or(Unusable::Short)?;
    // SAFETY: there are as many bytes as the structure has, and each pattern of bits is one: all fields are numbers.
    Ok(unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast::<T>()) })
}

fn stack(record: &[u8], doing: Doing) -> Result<Event, Unusable> {
    let sample: host::Sample = structure(record)?;
    let frames = |all: &[u64], bytes: u32| -> Vec<u64> {
        all.iter().copied().take(bytes as usize / 8).filter(|address| *address != 0).collect()
    };
    Ok(Event::Stack(Stack {
        time: sample.time_ns,
        doing,
        pid: sample.pid,
        thread: sample.thread,
        thread_name: text(&sample.name),
        space: sample.space,
        weight: 4_294_967_296.0 / (f64::from(sample.odds) + 1.0),
        kernel: frames(&sample.kernel, sample.kernel_bytes),
        user: frames(&sample.user, sample.user_bytes),
    }))
}

fn file(record: &[u8]) -> Result<Event, Unusable> {
    let call: host::FileCall = structure(record)?;
    let operation = match call.operation {
        operation::READ => Operation::Read,
        operation::WRITE => Operation::Write,
        operation::SYNC => Operation::Sync,
        _ => return Err(Unusable::Kind),
    };
    let parts = call.path.get(..call.path_bytes as usize).unwrap_or_default();
    let mut path = String::new();
    let parts: Vec<&[u8]> = parts.split(|byte| *byte == 0).filter(|part| !part.is_empty()).collect();
    for part in parts.iter().rev() {
        path.push('/');
        path.push_str(&String::from_utf8_lossy(part));
    }
    Ok(Event::File(FileCall {
        entered: call.entered_ns,
        time: call.time_ns,
        pid: call.pid,
        thread: call.thread,
        thread_name: text(&call.name),
        operation,
        result: call.result,
        path,
    }))
}

fn life(record: &[u8]) -> Result<Event, Unusable> {
    let life: host::Life = structure(record)?;
    let turn = match life.kind {
        kind::START => Turn::Start,
        kind::EXEC => Turn::Exec { program: text(&life.text) },
        kind::SIGNAL => Turn::Signal {
            number: u8::try_from(life.code).unwrap_or(0),
            sender: life.sender,
            sender_name: text(&life.sender_name),
        },
        kind::OOM => Turn::OutOfMemory,
        // As wait(2) tells it: a signal in the lower seven bits, or an exit code above eight.
        _ => Turn::Exit {
            code: (life.code >> 8 & 0xff).cast_signed(),
            signal: (life.code & 0x7f) as u8,
            lived: if life.began_ns == 0 { 0 } else { life.time_ns.saturating_sub(life.began_ns) },
        },
    };
    Ok(Event::Life(Life {
        time: life.time_ns,
        pid: life.pid,
        parent: life.parent,
        name: text(&life.name),
        turn,
    }))
}

/// Text up to its zero.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes<T: Plain>(value: &T) -> Vec<u8> {
        // SAFETY: the structures have no padding (their sizes are asserted), so all their bytes are written.
        unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), size_of::<T>()) }.to_vec()
    }

    fn name(text: &str) -> [u8; host::NAME] {
        let mut name = [0; host::NAME];
        name[..text.len()].copy_from_slice(text.as_bytes());
        name
    }

    #[test]
    fn a_sample_has_as_many_frames_as_were_copied_and_stands_for_those_that_were_not() {
        let mut sample = host::Sample {
            time_ns: 5,
            kind: kind::OFF_CPU,
            thread: 2,
            space: 77,
            pid: 1,
            odds: u32::MAX / 4,
            user_bytes: 16,
            kernel_bytes: 8,
            name: name("worker"),
            kernel: [9; host::KERNEL_FRAMES],
            user: [8; host::USER_FRAMES],
        };
        sample.user[1] = 0;
        let Ok(Event::Stack(stack)) = read(&bytes(&sample)) else { panic!() };
        assert_eq!((stack.doing, stack.pid, stack.thread, stack.space), (Doing::Waiting, 1, 2, 77));
        assert_eq!((stack.kernel, stack.user), (vec![9], vec![8]));
        assert_eq!((stack.thread_name.as_str(), stack.weight.round()), ("worker", 4.0));
    }

    #[test]
    fn a_path_is_put_together_from_its_parts() {
        let mut path = [0; host::PATH + host::PART];
        path[..15].copy_from_slice(b"file\0data\0var\0\0");
        let call = host::FileCall {
            time_ns: 5,
            kind: kind::FILE,
            thread: 2,
            entered_ns: 3,
            result: -5,
            pid: 1,
            operation: operation::SYNC,
            name: name("db"),
            path_bytes: 14,
            reserved: 0,
            path,
        };
        let Ok(Event::File(call)) = read(&bytes(&call)) else { panic!() };
        assert_eq!(
            (call.path.as_str(), call.operation, call.result),
            ("/var/data/file", Operation::Sync, -5)
        );
    }

    #[test]
    fn an_exit_tells_code_or_signal() {
        let life = |code| host::Life {
            time_ns: 50,
            kind: kind::EXIT,
            pid: 7,
            parent: 1,
            code,
            began_ns: 20,
            sender: 0,
            reserved: 0,
            name: name("job"),
            sender_name: name(""),
            text: [0; host::TEXT],
        };
        for (code, expected) in [
            (3 << 8, Turn::Exit { code: 3, signal: 0, lived: 30 }),
            // With a core dump.
            (0x80 | 11, Turn::Exit { code: 0, signal: 11, lived: 30 }),
        ] {
            let Ok(Event::Life(life)) = read(&bytes(&life(code))) else { panic!() };
            assert_eq!((life.turn, life.pid, life.name.as_str()), (expected, 7, "job"));
        }
    }

    #[test]
    fn what_is_short_or_of_no_kind_is_no_event() {
        let wake = |kind| bytes(&Wake { time_ns: 1, kind, thread: 2 });
        assert_eq!(read(&wake(kind::WAKE)), Ok(Event::Wake { time: 1, thread: 2 }));
        assert_eq!(read(&wake(99)), Err(Unusable::Kind));
        assert_eq!(read(&wake(kind::ON_CPU)), Err(Unusable::Short));
        assert_eq!(read(&wake(kind::EXEC)), Err(Unusable::Short));
        assert_eq!(read(&[0; 9]), Err(Unusable::Short));
    }
}
