//! Tests of the configuration: the sample is the defaults, and what is unsafe is refused by name.

use super::*;

const SAMPLE: &str = include_str!("../../../deploy/node.toml");

#[test]
fn the_sample_file_shows_exactly_the_defaults() {
    assert_eq!(parse(SAMPLE).unwrap(), Config::default());
    // Settings that are off by default stand there as comments; they must be right as well.
    let all: String = SAMPLE
        .lines()
        .map(|line| line.strip_prefix("#= ").unwrap_or(line))
        .fold(String::new(), |all, line| all + line + "\n");
    let config = parse(&all).unwrap();
    check(&config).unwrap();
    assert_eq!(config.memory.budget, Some(Size(1 << 30)));
}

#[test]
fn unknown_and_unsafe_values_are_refused_by_name() {
    let cases = [
        ("node_id = 0", "node_id"),
        ("node_id = 1024", "node_id"),
        ("node_idd = 1", "node_idd"),
        ("data_dir = ''", "data_dir"),
        ("stop_within = '10ms'", "stop_within"),
        ("cluster.name = ''", "cluster.name"),
        ("cluster.zone = 'a b'", "cluster.zone"),
        ("cluster.node_name = \"a\\nb\"", "cluster.node_name"),
        ("cluster.seeds = ['n1']", "cluster.seeds"),
        ("cluster.seeds = [':20037']", "cluster.seeds"),
        ("cluster.seeds = ['n1:0']", "cluster.seeds"),
        ("cluster.seeds = ['n1:20037']\ncluster.listen = '0.0.0.0:20037'", "cluster.advertise"),
        ("cluster.weight = 0", "cluster.weight"),
        ("cluster.gossip_interval = '1ms'", "cluster.gossip_interval"),
        ("cluster.phi_threshold = nan", "cluster.phi_threshold"),
        ("cluster.leader = 'me'", "leader"),
        ("grpc.listen = '127.0.0.1:20416'", "grpc.listen"),
        ("http.listen = 'everywhere'", "listen"),
        ("http.connections_max = 0", "connections_max"),
        ("grpc.listen = '0.0.0.0:1'", "tls.certificate"),
        ("grpc.listen = '10.0.0.1:1'\ninsecure = false", "insecure = true"),
        ("http.listen = '[::]:1'", "http.listen"),
        ("http.listen = '0.0.0.0:1'\ntls.certificate = '/a'\ntls.key = '/b'", "http.tokens_file"),
        ("http.listen = '0.0.0.0:1'\nhttp.tokens_file = '/a'", "tls.certificate"),
        (
            "grpc.listen = '0.0.0.0:1'\ntls.certificate = '/a'\ntls.key = '/b'\ncluster.seeds = ['a:1']",
            "cluster.secret_file",
        ),
        ("cluster.seeds = ['127.0.0.1:1']", "cluster.secret_file"),
        ("tls.certificate = '/a'", "tls.key"),
        ("tls.key = '/a'\ninsecure = true", "tls.key"),
        ("tls.client_authority = '/a'", "tls.client_authority"),
        ("query.timeout = '0s'", "query.timeout"),
        ("query.memory = '1MiB'", "query.memory"),
        ("memory.budget = '1MiB'", "memory.budget"),
        ("wal.size_max = '1 banana'", "size_max"),
        ("log.level = 'loud'", "loud"),
        ("store.mode = 'paper'", "paper"),
        ("store.mode = 'embedded'\nstore.urls = []", "urls"),
        ("store.mode = 'server'\nstore.urls = []", "store.urls"),
        ("store.mode = 'server'\nstore.urls = ['https://a:1']", "store.authority"),
        ("store.mode = 'server'\nstore.urls = ['http://a:1']\nstore.authority = '/a'", "https://"),
        ("store.mode = 'server'\nstore.urls = ['http://u:p@a:1']", "password"),
        ("store.mode = 'server'\nstore.urls = ['http://127.0.0.1:1', 'http://a:1']", "insecure = true"),
        (
            "store.mode = 'server'\nstore.urls = ['http://[::1]:1']\nstore.password = 'x'\nstore.password_file = '/x'",
            "password_file",
        ),
    ];
    for (text, name) in cases {
        let error = parse(text).and_then(|config| check(&config)).unwrap_err();
        assert!(format!("{error:#}").contains(name), "{text}: {error:#}");
    }
}

#[test]
fn who_listens_everywhere_is_reached_where_it_gossips() {
    let config = parse("cluster.listen = '0.0.0.0:20037'\ncluster.advertise = '10.0.0.7:20037'").unwrap();
    let (everywhere, one) = ("0.0.0.0:20035".parse().unwrap(), "10.1.1.1:20416".parse().unwrap());
    let facts = config.cluster.facts(7, everywhere, one);
    assert_eq!(facts.grpc, Some("10.0.0.7:20035".parse().unwrap()));
    assert_eq!(facts.http, Some(one));
    assert_eq!(facts.name, "n7");
}

#[test]
fn sockets_may_be_open_when_they_are_guarded_or_somebody_wrote_so() {
    const FILES: &str =
        "tls.certificate = '/a'\ntls.key = '/b'\nhttp.tokens_file = '/c'\ncluster.secret_file = '/d'";
    for text in [
        "grpc.listen = '0.0.0.0:1'\nhttp.listen = '0.0.0.0:2'\ninsecure = true",
        &format!("grpc.listen = '0.0.0.0:1'\nhttp.listen = '[::]:2'\ncluster.seeds = ['a:1']\n{FILES}"),
        "grpc.listen = '127.0.0.2:1'\nhttp.listen = '[::1]:2'",
        "cluster.seeds = ['127.0.0.1:1']\ninsecure = true",
        "store.mode = 'server'\nstore.urls = ['http://a:1']\ninsecure = true",
        "store.mode = 'server'\nstore.urls = ['https://a:1', 'https://b:1']\nstore.authority = '/a'",
        "grpc.listen = '[::ffff:127.0.0.1]:1'",
    ] {
        check(&parse(text).unwrap()).unwrap();
    }
}

#[test]
fn the_command_line_wins_over_the_file_and_a_missing_file_is_named() {
    let config = load(None, Some("/elsewhere".into())).unwrap();
    assert_eq!(config.data_dir, Path::new("/elsewhere"));
    let error = load(Some(Path::new("/no/such/file.toml")), None).unwrap_err();
    assert!(error.to_string().contains("/no/such/file.toml"), "{error}");
}

#[test]
fn only_addresses_of_this_machine_stay_on_it() {
    let check = |urls: &[&str], leaves| {
        let urls: Vec<_> = urls.iter().map(|&url| url.to_owned()).collect();
        assert_eq!(leave_machine(&urls), leaves, "{urls:?}");
    };
    check(&["http://127.0.0.1:8123", "http://localhost", "http://[::1]:8123/path"], false);
    check(&["http://127.0.0.1:8123", "http://10.0.0.1:8123"], true);
    check(&["http://localhost.example:8123"], true);
    check(&["not an address"], true);
}

#[test]
fn a_password_is_not_printed() {
    let config =
        parse("store.mode = 'server'\nstore.urls = ['http://a']\nstore.password = 'hunter2'").unwrap();
    assert!(!format!("{config:?}").contains("hunter2"));
}
