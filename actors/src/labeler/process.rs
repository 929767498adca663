//! Rows about one process each: `profile.in_process`, `event.file_event` and `event.process_event`.

use metaflow_schema::{
    enums::Kind,
    tables::{FileEvent, InProcess, ProcessEvent},
};
use metaflow_wire as wire;

use super::{
    Error, Input, Names,
    cells::{Cells, map_columns},
    ends, names,
};

pub(super) fn profile<N: Names>(
    input: &Input<'_, N>,
    cells: &mut Cells<'_>,
    mut rows: wire::InProcess,
) -> Result<InProcess, Error<N::Error>> {
    let [app_service_id] =
        names::resolve(input.names, cells, [("app_service", Kind::Process, &rows.app_service)])?;
    let pids = std::mem::take(&mut rows.pid);
    let tags = ends::of_processes(input.snapshot, input.id.agent_id, cells, pids)?;
    Ok(map_columns!(cells, rows, InProcess => InProcess,
        same {
            micros { start_time }
            text { profile_event_type, profile_language_type, profile_value_unit, profile_location_str }
            whole { profile_value }
        }
        renamed { micros { end_time => time } }
        nested { pid: _, app_service: _ }
        rest {
            agent_id: vec![input.id.agent_id; cells.rows],
            batch_seq: vec![input.id.seq; cells.rows],
            app_service_id: app_service_id,
            tags: tags,
        }
    ))
}

pub(super) fn files<N: Names>(
    input: &Input<'_, N>,
    cells: &mut Cells<'_>,
    mut rows: wire::FileEvent,
) -> Result<FileEvent, Error<N::Error>> {
    let pids = std::mem::take(&mut rows.pid);
    let tags = ends::of_processes(input.snapshot, input.id.agent_id, cells, pids)?;
    Ok(map_columns!(cells, rows, FileEvent => FileEvent,
        same {
            micros { start_time }
            text { event_type, process_kname, file_dir, file_name }
            whole { syscall_thread, bytes, duration }
        }
        renamed { micros { end_time => time } }
        nested { pid: _ }
        rest {
            agent_id: vec![input.id.agent_id; cells.rows],
            batch_seq: vec![input.id.seq; cells.rows],
            tags: tags,
        }
    ))
}

pub(super) fn lives<N: Names>(
    input: &Input<'_, N>,
    cells: &mut Cells<'_>,
    mut rows: wire::ProcessEvent,
) -> Result<ProcessEvent, Error<N::Error>> {
    let pids = std::mem::take(&mut rows.pid);
    let tags = ends::of_processes(input.snapshot, input.id.agent_id, cells, pids)?;
    Ok(map_columns!(cells, rows, ProcessEvent => ProcessEvent,
        same {
            micros { time }
            byte { signal }
            text { event_type, process_kname, executable, signal_name, sender_kname }
            whole { parent_pid, exit_code, sender_pid, duration }
        }
        renamed {}
        nested { pid: _ }
        rest {
            agent_id: vec![input.id.agent_id; cells.rows],
            batch_seq: vec![input.id.seq; cells.rows],
            tags: tags,
        }
    ))
}
