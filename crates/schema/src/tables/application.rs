//! `flow_log.l7_flow_log` and `flow_metrics.application*`: requests and their metrics.

use crate::{
    block::block,
    enums::{Kind, L7Protocol, L7Type, ObservationPoint, ResponseStatus, SignalSource, SyscallTraceSource},
    tags::Tags,
    types::{I32, Micros, Seconds, Text, U8, U16, U32, U64},
};

block! {
    /// `flow_log.l7_flow_log`: one request and its response.
    L7FlowLog, row L7FlowLogRow {
        columns {
            /// first byte of the request
            start_time: Micros Plain;
            /// last byte of the response, or of the request when there was none
            time: Micros Time;
            /// response delay in microseconds; 0 without a response
            response_duration: U64 Amount;
            /// number of the flow on its agent
            flow_id: U64 Plain;
            /// agent that saw it
            agent_id: U32 Dictionary(Kind::Agent);
            /// batch that brought the row
            batch_seq: U64 Ledger, "DoubleDelta, LZ4";
            /// where on the path it was seen
            observation_point: U8 Enum(ObservationPoint::VALUES);
            /// how it was seen
            signal_source: U8 Enum(SignalSource::VALUES);
            /// IANA protocol number; 0: a Unix socket
            protocol: U8 Plain;
            /// port of the client
            client_port: U16 Plain;
            /// port of the server
            server_port: U16 Plain;
            /// network interface
            interface_index: U32 Plain;
            /// application protocol
            l7_protocol: U8 Enum(L7Protocol::VALUES);
            /// request, response or both
            l7_type: U8 Enum(L7Type::VALUES);
            /// how it ended
            response_status: U8 Enum(ResponseStatus::VALUES);
            /// protocol version
            version_id: U32 Dictionary(Kind::Version);
            /// method, verb, command
            request_type_id: U32 Dictionary(Kind::RequestType);
            /// host, database
            request_domain_id: U32 Dictionary(Kind::RequestDomain);
            /// normalised path, RPC method, statement shape
            endpoint_id: U32 Dictionary(Kind::Endpoint);
            /// client software
            user_agent_id: U32 Dictionary(Kind::UserAgent);
            /// target, statement, command line; redacted
            request_resource: Text Plain;
            /// stream, statement or transaction id
            request_id: U64 Plain;
            /// protocol's own code
            response_code: I32 Plain;
            /// error text; redacted
            response_exception: Text Plain;
            /// answer, e.g. of DNS
            response_result: Text Plain;
            /// request size in bytes
            request_length: U64 Amount;
            /// response size in bytes
            response_length: U64 Amount;
            /// captured bytes of the request
            captured_request_byte: U32 Amount;
            /// captured bytes of the response
            captured_response_byte: U32 Amount;
            /// trace id from headers
            trace_id: Text Plain;
            /// span id from headers
            span_id: Text Plain;
            /// parent span id from headers
            parent_span_id: Text Plain;
            /// X-Request-ID of the request
            x_request_id_0: Text Plain;
            /// X-Request-ID of the response
            x_request_id_1: Text Plain;
            /// referer
            referer: Text Plain;
            /// first address of X-Forwarded-For
            http_proxy_client: Text Plain;
            /// path of the Unix socket; abstract ones begin with @
            socket_path: Text Plain;
            /// TCP sequence number of the request; of a Unix socket a number that both ends share
            req_tcp_seq: U32 Plain;
            /// TCP sequence number of the response; likewise
            resp_tcp_seq: U32 Plain;
            /// trace id of system calls, request
            syscall_trace_id_request: U64 Plain;
            /// trace id of system calls, response
            syscall_trace_id_response: U64 Plain;
            /// thread of the client
            syscall_thread_0: U32 Plain;
            /// thread of the server
            syscall_thread_1: U32 Plain;
            /// coroutine of the client
            syscall_coroutine_0: U64 Plain;
            /// coroutine of the server
            syscall_coroutine_1: U64 Plain;
            /// what the trace ids of system calls rest on
            syscall_trace_source: U8 Enum(SyscallTraceSource::VALUES);
        }
        groups { tags_0: Tags "_0"; tags_1: Tags "_1"; }
    }
}

block! {
    /// RED figures of an interval. Delays in microseconds.
    ApplicationInterval, row ApplicationIntervalRow {
        columns {
            /// begin of the interval
            time: Seconds Time;
            /// agent that saw it
            agent_id: U32 Dictionary(Kind::Agent);
            /// batch that brought the row
            batch_seq: U64 Ledger, "DoubleDelta, LZ4";
            /// where on the path it was seen
            observation_point: U8 Enum(ObservationPoint::VALUES);
            /// IANA protocol number; 0: a Unix socket
            protocol: U8 Plain;
            /// application protocol
            l7_protocol: U8 Enum(L7Protocol::VALUES);
            /// port of the server
            server_port: U16 Plain;
            /// host, database
            request_domain_id: U32 Dictionary(Kind::RequestDomain);
            /// normalised path, RPC method, statement shape
            endpoint_id: U32 Dictionary(Kind::Endpoint);
            /// requests
            request: U32 Amount;
            /// responses
            response: U32 Amount;
            /// requests at fault
            client_error: U32 Amount;
            /// failures of the server
            server_error: U32 Amount;
            /// requests without response in time
            timeout: U32 Amount;
            /// response delay, sum
            rrt_sum: U64 Amount;
            /// response delay, count
            rrt_count: U32 Amount;
            /// response delay, maximum
            rrt_max: U32 Amount;
        }
        groups {}
    }
}

block! {
    /// `flow_metrics.application`: requests that each service served.
    Application, row ApplicationRow {
        columns {}
        groups { interval: ApplicationInterval ""; tags: Tags ""; }
    }
}

block! {
    /// `flow_metrics.application_map`: the same for each pair of client and service.
    ApplicationMap, row ApplicationMapRow {
        columns {}
        groups { interval: ApplicationInterval ""; tags_0: Tags "_0"; tags_1: Tags "_1"; }
    }
}
