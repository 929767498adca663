//! `profile.in_process`, `event.file_event` and `event.process_event`: what a process did with its time and its files, and what became of
//! it. A row describes one process, so the tags stand on it once.

use crate::{
    block::block,
    enums::Kind,
    tags::Tags,
    types::{I32, Micros, Text, U8, U32, U64},
};

block! {
    /// `profile.in_process`: time that a process spent in one stack of functions during a few seconds.
    InProcess, row InProcessRow {
        columns {
            /// begin of the period that the row sums up
            start_time: Micros Plain;
            /// end of the period
            time: Micros Time;
            /// agent that saw it
            agent_id: U32 Dictionary(Kind::Agent);
            /// batch that brought the row
            batch_seq: U64 Ledger, "DoubleDelta, LZ4";
            /// process, by its command or script
            app_service_id: U32 Dictionary(Kind::Process);
            /// on-cpu: computing; off-cpu: waiting
            profile_event_type: Text Plain;
            /// how it was measured
            profile_language_type: Text Plain;
            /// unit of profile_value
            profile_value_unit: Text Plain;
            /// thread (`[t]`) and functions from the outermost to the innermost, joined by semicolons; `[k]` is the kernel's, other brackets stand for files without symbols
            profile_location_str: Text Plain;
            /// time in this stack, microseconds
            profile_value: U64 Amount;
        }
        groups { tags: Tags ""; }
    }
}

block! {
    /// `event.file_event`: one slow read or write of a file.
    FileEvent, row FileEventRow {
        columns {
            /// when it began
            start_time: Micros Plain;
            /// when it returned
            time: Micros Time;
            /// agent that saw it
            agent_id: U32 Dictionary(Kind::Agent);
            /// batch that brought the row
            batch_seq: U64 Ledger, "DoubleDelta, LZ4";
            /// read, write or sync
            event_type: Text Plain;
            /// name of the thread, as the kernel has it
            process_kname: Text Plain;
            /// thread that waited
            syscall_thread: U32 Plain;
            /// directory, as the process sees it
            file_dir: Text Plain;
            /// name of the file
            file_name: Text Plain;
            /// bytes that were read or written
            bytes: U64 Amount;
            /// how long it took, microseconds
            duration: U64 Amount;
        }
        groups { tags: Tags ""; }
    }
}

block! {
    /// `event.process_event`: a process began, became another program, got a deadly signal, ran out of memory, ended.
    ProcessEvent, row ProcessEventRow {
        columns {
            /// when it happened
            time: Micros Time;
            /// agent that saw it
            agent_id: U32 Dictionary(Kind::Agent);
            /// batch that brought the row
            batch_seq: U64 Ledger, "DoubleDelta, LZ4";
            /// start, exec, signal, oom or exit
            event_type: Text Plain;
            /// name of the process, as the kernel has it
            process_kname: Text Plain;
            /// parent of the process
            parent_pid: U32 Plain;
            /// program of an exec
            executable: Text Plain;
            /// exit code; 0 where a signal ended it
            exit_code: I32 Plain;
            /// number of the signal that was sent, or that ended the process
            signal: U8 Plain;
            /// name of the signal
            signal_name: Text Plain;
            /// process that sent the signal
            sender_pid: U32 Plain;
            /// name of the sender, as the kernel has it
            sender_kname: Text Plain;
            /// life of the process at its exit, microseconds
            duration: U64 Amount;
        }
        groups { tags: Tags ""; }
    }
}
