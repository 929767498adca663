//! Last words to a client that speaks plain text to an encrypted socket: what to do about it, in its own protocol.

use tokio::{io::AsyncWriteExt as _, net::TcpStream};

const GRPC_TEXT: &[u8] =
    b"this node speaks TLS: set tls.authority (and tls.certificate, tls.key) in the configuration of the agent";

/// Answers an HTTP/1 client and hangs up.
pub(crate) async fn answer_http(stream: TcpStream) {
    let body = "{\"OPT_STATUS\":\"INVALID_PARAMETERS\",\"DESCRIPTION\":\"this node speaks TLS: use https://, and the authority of its \
                certificate (metaflow ctl: --ca FILE)\",\"result\":null}";
    let head =
        "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: ";
    say(stream, format!("{head}{}\r\n\r\n{body}", body.len()).as_bytes()).await;
}

/// Answers an HTTP/2 client and hangs up.
pub(crate) async fn answer_grpc(stream: TcpStream) {
    say(stream, &go_away()).await;
}

/// Empty settings, which must come first, then GOAWAY with INADEQUATE_SECURITY (RFC 9113, 6.5, 6.8, 7) and the text.
fn go_away() -> Vec<u8> {
    let mut bytes = vec![0, 0, 0, 4, 0, 0, 0, 0, 0];
    // No stream was looked at; then the code.
    let payload = [&[0, 0, 0, 0, 0, 0, 0, 0xc], GRPC_TEXT].concat();
    let length = u32::try_from(payload.len()).unwrap_or(0).to_be_bytes();
    bytes.extend_from_slice(&length[1..]);
    bytes.extend_from_slice(&[7, 0, 0, 0, 0, 0]);
    bytes.extend_from_slice(&payload);
    bytes
}

async fn say(mut stream: TcpStream, bytes: &[u8]) {
    // The words are few enough for the buffer of any connection.
    if let Err(error) = stream.write_all(bytes).await {
        tracing::debug!(%error, "a client of plain text was gone");
        return;
    }
    metaflow_tls::hang_up(stream).await;
}
