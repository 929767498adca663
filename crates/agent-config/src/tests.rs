//! The sample file, the units and the refusals of configuration.

use super::*;

const SAMPLE: &str = include_str!("../../../deploy/agent.toml");

#[test]
fn the_sample_file_says_what_the_defaults_are() {
    assert_eq!(Config::parse(SAMPLE).unwrap(), Config::default());
}

#[test]
fn the_sample_file_names_every_key_with_a_comment_before_it() {
    let sample: toml::Table = SAMPLE.parse().unwrap();
    let defaults = toml::Table::try_from(Config::default()).unwrap();
    let mut comment = false;
    for line in SAMPLE.lines() {
        assert!(!line.contains('=') || line.starts_with('#') || comment, "no comment before {line:?}");
        comment = line.starts_with('#');
    }
    for (key, value) in &defaults {
        match value.as_table() {
            None => assert!(sample.contains_key(key), "{key} is not in the sample"),
            Some(section) => {
                for name in section.keys() {
                    assert!(
                        sample[key].as_table().unwrap().contains_key(name),
                        "{key}.{name} is not in the sample"
                    );
                }
            }
        }
    }
}

#[test]
fn sizes_read_with_units_and_print_shortest() {
    let check = |text: &str, bytes: u64, printed: &str| {
        let size: Size = text.parse().unwrap();
        assert_eq!((size.0, size.to_string().as_str()), (bytes, printed));
    };
    check("64 MiB", 64 << 20, "64 MiB");
    check("1GiB", 1 << 30, "1 GiB");
    check("1536 KiB", 1536 << 10, "1536 KiB");
    check("7", 7, "7 B");
    for text in ["", "MiB", "-1 B", "1 MB", "99999999999 GiB"] {
        assert!(text.parse::<Size>().is_err(), "{text:?}");
    }
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    let check = |text: &str, part: &str| {
        let error = format!("{:#}", Config::parse(text).unwrap_err());
        assert!(error.contains(part), "{text}: {error}");
    };
    check("sever = []", "sever");
    check("[ebpf]\nring = \"3 MiB\"", "power of two");
    check("[ebpf]\npayload_max = \"1 MiB\"", "ebpf.payload_max");
    check("[ebpf]\nenabled = \"on\"", "auto");
    check("servers = [\"node\"]", "host:port");
    check("servers = [\"http://node:1\"]", "host:port");
    check("servers = [\"10.0.0.1:1\"]", "insecure = true");
    check("servers = [\"node.example:1\"]\ninsecure = false", "insecure = true");
    check("[tls]\ncertificate = \"/a\"\nauthority = \"/b\"", "tls.key");
    check("[tls]\ncertificate = \"/a\"\nkey = \"/b\"", "tls.authority");
    check("[spool]\nbytes_max = \"1 MiB\"", "spool.bytes_max");
    check("[capture]\nsnaplen = \"20 B\"", "capture.snaplen");
    check("[capture]\nsnaplen = \"1 lot\"", "size");
    check("[guard]\nmemory_max = \"1 MiB\"", "guard.memory_max");
    check("[log]\nformat = \"xml\"", "xml");
    check("[session]\ntrace_headers = [\"trace id\"]", "session.trace_headers: \"trace id\"");
    check("[session]\ntrace_headers = [\"\"]", "such as \"x-trace-id\"");
    check(&format!("[session]\nrequest_id_headers = [\"{}\"]", "x".repeat(33)), "1 to 32 characters");
    check("[session]\nrequest_id_headers = [\"a\", \"b\", \"A\"]", "has \"A\" twice");
    check("[session]\ntrace_headers = [\"a\"]\nrequest_id_headers = [\"A\"]", "leave it in one");
    check(&format!("[session]\ntrace_headers = {:?}", ["a"; 9]), "more than 8");
}

#[test]
fn servers_beyond_this_host_need_an_authority_or_a_word() {
    for text in [
        "servers = [\"10.0.0.1:1\"]\ninsecure = true",
        "servers = [\"node.example:1\"]\n[tls]\nauthority = \"/a\"",
        "servers = [\"localhost:1\", \"[::1]:1\", \"127.0.0.2:1\"]",
    ] {
        Config::parse(text).unwrap();
    }
}

#[test]
fn settings_that_are_off_stand_right_in_the_sample() {
    let all: String =
        SAMPLE.lines().map(|line| line.strip_prefix("#= ").unwrap_or(line).to_owned() + "\n").collect();
    let config = Config::parse(&all).unwrap();
    assert!(config.tls.authority.is_some() && config.tls.certificate.is_some() && config.tls.key.is_some());
    // Files that are not there are named.
    assert!(config.tls.client().unwrap_err().to_string().contains("/etc/metaflow/tls/ca.crt"));
}

#[test]
fn ports_of_servers_are_never_captured() {
    let config = Config::parse("insecure = true\nservers = [\"[::1]:7001\", \"node.example:7002\"]").unwrap();
    let ports = config.excluded_ports();
    assert!(ports.contains(&7001) && ports.contains(&7002) && ports.contains(&20416));
}
