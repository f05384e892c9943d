//! Being connected with a container.

use std::time::Duration;

use orch_engine::engine::{AttachEvent, AttachOptions, AttachSession};
use orch_engine::logs::Stream;

use crate::needs_root;
use crate::support::{Host, PATIENCE, eventually};

/// Everything until the end: the bytes, and how it ended.
fn drain(session: &mut AttachSession) -> (Vec<u8>, AttachEvent) {
    let mut bytes = Vec::new();
    loop {
        match session.receive(Some(PATIENCE)).unwrap().expect("the session goes on or ends") {
            AttachEvent::Output(_, data) => bytes.extend(data),
            end => return (bytes, end),
        }
    }
}

#[test]
fn attached_before_its_start_nothing_is_missed() {
    needs_root!();
    let host = Host::new();
    let mut config = host.container(&["/bin/sh", "-c", "echo first; cat; echo err >&2; echo last"]);
    config.process.stdin_open = true;
    config.process.stdin_once = true;
    let id = config.id.clone();
    host.engine().create(config).unwrap();
    let mut session = host.engine().attach(&id, AttachOptions { stdin: true, ..AttachOptions::default() }).unwrap();
    // Typed ahead, and closed, before there is anybody to read it.
    session.input().write(b"one\ntwo\n").unwrap();
    session.input().end().unwrap();
    host.engine().start(&id, None).unwrap();
    let mut out = Vec::new();
    let mut err = Vec::new();
    loop {
        match session.receive(Some(PATIENCE)).unwrap().unwrap() {
            AttachEvent::Output(Stream::Stdout, data) => out.extend(data),
            AttachEvent::Output(Stream::Stderr, data) => err.extend(data),
            end => {
                assert_eq!(end, AttachEvent::Ended);
                break;
            }
        }
    }
    assert_eq!(String::from_utf8(out).unwrap(), "first\none\ntwo\nlast\n");
    assert_eq!(String::from_utf8(err).unwrap(), "err\n");
    assert_eq!(host.wait(&id).exit_code, Some(0));
}

#[test]
fn much_input_arrives_whole() {
    needs_root!();
    let host = Host::new();
    let mut config = host.container(&["/bin/sh", "-c", "usleep 100000; wc -c"]);
    config.process.stdin_open = true;
    config.process.stdin_once = true;
    let id = host.start(config);
    let mut session = host.engine().attach(&id, AttachOptions { stdin: true, ..AttachOptions::default() }).unwrap();
    let input = session.input();
    let writer = std::thread::spawn(move || {
        input.write(&vec![b'x'; 3_000_000]).unwrap();
        input.end().unwrap();
    });
    assert_eq!(drain(&mut session), (b"3000000\n".to_vec(), AttachEvent::Ended));
    writer.join().unwrap();
}

#[test]
fn a_terminal_echoes_and_is_resized() {
    needs_root!();
    let host = Host::new();
    let mut config = host.container(&["/bin/sh", "-c", "stty size; read line; echo \"got $line\"; stty size"]);
    config.process.tty = true;
    config.process.stdin_open = true;
    let id = config.id.clone();
    host.engine().create(config).unwrap();
    let mut session = host.engine().attach(&id, AttachOptions { stdin: true, patient: true }).unwrap();
    host.engine().start(&id, None).unwrap();
    let Some(AttachEvent::Output(Stream::Stdout, first)) = session.receive(Some(PATIENCE)).unwrap() else {
        panic!("output")
    };
    assert_eq!(first, b"24 80\r\n");
    host.engine().resize(&id, 40, 100).unwrap();
    session.input().write(b"hello\r").unwrap();
    let (rest, end) = drain(&mut session);
    assert_eq!(
        (String::from_utf8(rest).unwrap().as_str(), end),
        ("hello\r\ngot hello\r\n40 100\r\n", AttachEvent::Ended)
    );
    assert_eq!(host.output(&id), "24 80\r\nhello\r\ngot hello\r\n40 100\r\n");
}

#[test]
fn a_slow_client_is_let_go_and_the_log_has_everything() {
    needs_root!();
    let host = Host::new();
    let (config, told) = host.told("while ! test -e /host/go; do usleep 1000; done; seq 1 200000");
    let id = host.start(config);
    let mut slow = host.engine().attach(&id, AttachOptions::default()).unwrap();
    let mut quick = host.engine().attach(&id, AttachOptions::default()).unwrap();
    let reading = std::thread::spawn(move || drain(&mut quick));
    std::fs::write(told.join("go"), "").unwrap();
    // Not one byte is read until the container has ended.
    assert_eq!(host.wait(&id).exit_code, Some(0));
    let (bytes, end) = drain(&mut slow);
    assert_eq!(end, AttachEvent::TooSlow);
    assert!(!bytes.is_empty());
    let all: String = (1..=200_000).map(|number| format!("{number}\n")).collect();
    assert_eq!(host.output(&id), all);
    let (bytes, end) = reading.join().unwrap();
    // The quick one may have been outrun on a busy machine, but then it was told.
    assert!(end == AttachEvent::TooSlow || bytes == all.as_bytes());
}

#[test]
fn a_patient_client_holds_its_container_back_and_loses_nothing() {
    needs_root!();
    let host = Host::new();
    let config = host.container(&["/bin/seq", "1", "300000"]);
    let id = config.id.clone();
    host.engine().create(config).unwrap();
    let mut session = host.engine().attach(&id, AttachOptions { stdin: false, patient: true }).unwrap();
    host.engine().start(&id, None).unwrap();
    std::thread::sleep(Duration::from_millis(300));
    assert!(host.state(&id).phase.is_alive(), "it waits for its client");
    let (bytes, end) = drain(&mut session);
    assert_eq!(end, AttachEvent::Ended);
    assert_eq!(bytes.iter().filter(|&&byte| byte == b'\n').count(), 300_000);
}

#[test]
fn stdin_closes_when_the_client_that_wrote_to_it_goes() {
    needs_root!();
    let host = Host::new();
    for once in [true, false] {
        let mut config = host.container(&["/bin/sh", "-c", "cat; echo end"]);
        config.process.stdin_open = true;
        config.process.stdin_once = once;
        let id = host.start(config);
        let session = host.engine().attach(&id, AttachOptions { stdin: true, ..AttachOptions::default() }).unwrap();
        session.input().write(b"hello\n").unwrap();
        eventually("it has read", || host.output(&id) == "hello\n");
        session.input().detach();
        drop(session);
        if once {
            host.wait(&id);
        } else {
            assert!(host.engine().wait(&id, Some(Duration::from_millis(200))).unwrap().phase.is_alive());
            host.engine().close_stdin(&id).unwrap();
            host.wait(&id);
        }
        assert_eq!(host.output(&id), "hello\nend\n");
    }
}
