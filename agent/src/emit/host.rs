//! Rows of `in_process`, `file_event` and `process_event`: each describes one process.

use metaflow_wire::{self as wire, Endpoints, columns::Rows as WireRows};

use super::{
    columns::{Builder, Rows, push_row, trim_columns},
    pool::KEY_TEXT_MAX,
};
use crate::{
    events::host::Doing,
    incidents::{FileRow, LifeRow, signal_name},
    profile::{self, FOLDED_MAX},
};

/// Longest path that is kept; the kernel's own limit.
const PATH_MAX: usize = 4_096;
/// How stacks are measured, as other systems' clients name it.
const LANGUAGE: &str = "eBPF";
const UNIT: &str = "microseconds";

#[derive(Debug, Default)]
pub(super) struct Stacks {
    rows: wire::InProcess,
}

impl Rows for Stacks {
    const ROW_BYTES: usize = 64;

    fn into_wire(mut self, _: Endpoints) -> WireRows {
        let rows = &mut self.rows;
        trim_columns!(rows, InProcess {
            pid, start_time, end_time, app_service, profile_event_type, profile_language_type, profile_value_unit,
            profile_location_str, profile_value,
        } nested {});
        WireRows::InProcess(self.rows)
    }
}

pub(super) fn push_stack(builder: &mut Builder<Stacks>, row: &profile::Row, now: u64, truncated: &mut u64) {
    builder.begin_row(now);
    let profile::Row { pid, process, doing, folded, value, start, end } = row;
    let mut text = |value: &str, bytes_max: usize| builder.pool.text(value, bytes_max, truncated);
    let event_type = match doing {
        Doing::Computing => "on-cpu",
        Doing::Waiting => "off-cpu",
    };
    push_row!(builder.columns.rows, InProcess {
        pid: *pid,
        start_time: *start,
        end_time: *end,
        app_service: text(process, KEY_TEXT_MAX),
        profile_event_type: text(event_type, KEY_TEXT_MAX),
        profile_language_type: text(LANGUAGE, KEY_TEXT_MAX),
        profile_value_unit: text(UNIT, KEY_TEXT_MAX),
        profile_location_str: text(folded, FOLDED_MAX),
        profile_value: *value,
    } nested {});
}

#[derive(Debug, Default)]
pub(super) struct Files {
    rows: wire::FileEvent,
}

impl Rows for Files {
    const ROW_BYTES: usize = 72;

    fn into_wire(mut self, _: Endpoints) -> WireRows {
        let rows = &mut self.rows;
        trim_columns!(rows, FileEvent {
            pid, start_time, end_time, event_type, process_kname, syscall_thread, file_dir, file_name, bytes, duration,
        } nested {});
        WireRows::FileEvent(self.rows)
    }
}

pub(super) fn push_file(builder: &mut Builder<Files>, row: &FileRow, now: u64, truncated: &mut u64) {
    builder.begin_row(now);
    let FileRow { start, end, pid, thread, thread_name, event_type, directory, file, bytes, duration } = row;
    let mut text = |value: &str, bytes_max: usize| builder.pool.text(value, bytes_max, truncated);
    push_row!(builder.columns.rows, FileEvent {
        pid: *pid,
        start_time: *start,
        end_time: *end,
        event_type: text(event_type, KEY_TEXT_MAX),
        process_kname: text(thread_name, KEY_TEXT_MAX),
        syscall_thread: *thread,
        file_dir: text(directory, PATH_MAX),
        file_name: text(file, KEY_TEXT_MAX),
        bytes: *bytes,
        duration: *duration,
    } nested {});
}

#[derive(Debug, Default)]
pub(super) struct Lives {
    rows: wire::ProcessEvent,
}

impl Rows for Lives {
    const ROW_BYTES: usize = 72;

    fn into_wire(mut self, _: Endpoints) -> WireRows {
        let rows = &mut self.rows;
        trim_columns!(rows, ProcessEvent {
            pid, time, event_type, process_kname, parent_pid, executable, exit_code, signal, signal_name, sender_pid,
            sender_kname, duration,
        } nested {});
        WireRows::ProcessEvent(self.rows)
    }
}

pub(super) fn push_life(builder: &mut Builder<Lives>, row: &LifeRow, now: u64, truncated: &mut u64) {
    builder.begin_row(now);
    let LifeRow {
        time,
        pid,
        parent,
        name,
        event_type,
        program,
        exit_code,
        signal,
        sender,
        sender_name,
        lived,
    } = row;
    let mut text = |value: &str, bytes_max: usize| builder.pool.text(value, bytes_max, truncated);
    push_row!(builder.columns.rows, ProcessEvent {
        pid: *pid,
        time: *time,
        event_type: text(event_type, KEY_TEXT_MAX),
        process_kname: text(name, KEY_TEXT_MAX),
        parent_pid: *parent,
        executable: text(program, PATH_MAX),
        exit_code: *exit_code,
        signal: u32::from(*signal),
        signal_name: text(signal_name(*signal), KEY_TEXT_MAX),
        sender_pid: *sender,
        sender_kname: text(sender_name, KEY_TEXT_MAX),
        duration: *lived,
    } nested {});
}
