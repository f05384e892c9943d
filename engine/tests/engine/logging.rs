//! Nothing of a container's output is lost, and all of it can be found.

use std::process::Command;
use std::time::Duration;

use orch_engine::config::{ContainerConfig, ContainerId, Logging};
use orch_engine::logs::Stream;
use orch_engine::logs::entry::LogLine;
use orch_engine::logs::reader::{LogQuery, Next};

use crate::needs_root;
use crate::support::{Host, eventually};

fn shell(host: &Host, script: &str, max_size: u64, max_file: u32) -> ContainerConfig {
    ContainerConfig {
        logging: Logging { max_size, max_file, none: false },
        ..host.container(&["/bin/sh", "-c", script])
    }
}

fn lines(host: &Host, id: &ContainerId, query: LogQuery) -> Vec<LogLine> {
    host.engine().logs(id, query).unwrap().map(Result::unwrap).collect()
}

fn texts(host: &Host, id: &ContainerId, query: LogQuery) -> Vec<String> {
    lines(host, id, query).into_iter().map(|line| line.text).collect()
}

fn numbers(text: impl IntoIterator<Item = String>) -> Vec<u64> {
    text.into_iter().map(|line| line.trim().parse().unwrap()).collect()
}

#[test]
fn two_hundred_thousand_lines_are_all_there_across_rotation() {
    needs_root!();
    let host = Host::new();
    let id = host.start(shell(&host, "seq 1 200000", 1 << 20, 100));
    host.wait(&id);
    let found = numbers(texts(&host, &id, LogQuery::default()));
    assert_eq!(found.len(), 200_000);
    assert!(found.iter().copied().eq(1..=200_000), "in order, none missing, none twice");
    let files = std::fs::read_dir(host.engine().log_directory(&id).unwrap()).unwrap().flatten();
    let sizes: Vec<u64> = files
        .filter(|file| file.file_name().to_string_lossy().starts_with("log.json"))
        .map(|file| file.metadata().unwrap().len())
        .collect();
    assert!(sizes.len() > 10, "{sizes:?}");
    assert!(sizes.iter().all(|&size| size <= 1 << 20), "{sizes:?}");
    // The end of a rotated log is found from behind.
    let last = texts(&host, &id, LogQuery { tail: Some(30_000), ..LogQuery::default() });
    assert!(numbers(last).into_iter().eq(170_001..=200_000));
}

#[test]
fn old_files_go_and_the_rest_is_whole() {
    needs_root!();
    let host = Host::new();
    for max_file in [1, 3] {
        let id = host.start(shell(&host, "seq 1 100000", 256 << 10, max_file));
        host.wait(&id);
        let found = numbers(texts(&host, &id, LogQuery::default()));
        assert_eq!(*found.last().unwrap(), 100_000);
        assert!(found.windows(2).all(|pair| pair[1] == pair[0] + 1));
        let directory = host.engine().log_directory(&id).unwrap();
        let names: Vec<String> = std::fs::read_dir(directory)
            .unwrap()
            .flatten()
            .map(|file| file.file_name().to_string_lossy().into_owned())
            .filter(|name| name.starts_with("log.json"))
            .collect();
        assert_eq!(names.len(), max_file as usize, "{names:?}");
    }
}

#[test]
fn a_follower_sees_every_line_across_rotation_and_ends_with_the_container() {
    needs_root!();
    let host = Host::new();
    let config =
        shell(&host, "for i in $(seq 1 400); do seq $((i*100-99)) $((i*100)); usleep 1000; done", 64 << 10, 1000);
    let id = config.id.clone();
    host.engine().create(config).unwrap();
    // Before its start: a follower waits for the first line.
    let follower = host.engine().logs(&id, LogQuery { follow: true, ..LogQuery::default() }).unwrap();
    let reading = std::thread::spawn(move || follower.map(|line| line.unwrap().text).collect::<Vec<_>>());
    host.engine().start(&id, None).unwrap();
    host.wait(&id);
    let found = numbers(reading.join().unwrap());
    assert_eq!(found.len(), 40_000);
    assert!(found.iter().copied().eq(1..=40_000));
}

#[test]
fn a_follower_that_is_outrun_is_told_where() {
    needs_root!();
    let host = Host::new();
    let (config, told) =
        host.told("seq 1 100; while ! test -e /host/go; do usleep 1000; done; seq 101 40000; echo 40001");
    let id =
        host.start(ContainerConfig { logging: Logging { max_size: 64 << 10, max_file: 2, none: false }, ..config });
    let mut follower = host.engine().logs(&id, LogQuery { follow: true, ..LogQuery::default() }).unwrap();
    for number in 1..=100 {
        assert_eq!(follower.next().unwrap().unwrap().text, format!("{number}\n"));
    }
    // Not read until everything is written, and most of it rotated away.
    std::fs::write(told.join("go"), "").unwrap();
    host.wait(&id);
    let rest: Vec<String> = follower.map(|line| line.unwrap().text).collect();
    let notice = rest.iter().position(|line| line.starts_with("orch: log lines are missing here")).unwrap();
    assert!(
        numbers(rest[..notice].to_vec()).into_iter().eq(101..101 + notice as u64),
        "the file that was open is read to its end"
    );
    let after = numbers(rest[notice + 1..].to_vec());
    assert_eq!(*after.last().unwrap(), 40_001);
    assert!(after.windows(2).all(|pair| pair[1] == pair[0] + 1));
}

#[test]
fn a_follower_ends_when_it_is_told_or_the_container_is_removed() {
    needs_root!();
    let host = Host::new();
    let id = host.start_args(&["/bin/sh", "-c", "echo up; sleep 1000"]);
    let mut first = host.engine().logs(&id, LogQuery { follow: true, ..LogQuery::default() }).unwrap();
    assert!(matches!(first.next_within(Duration::from_secs(30)), Ok(Next::Line(line)) if line.text == "up\n"));
    assert!(matches!(first.next_within(Duration::from_millis(1)), Ok(Next::Idle)));
    let stopper = first.stopper();
    let mut second = host.engine().logs(&id, LogQuery { follow: true, tail: Some(0), ..LogQuery::default() }).unwrap();
    let reading = std::thread::spawn(move || first.next().is_none());
    stopper.stop();
    assert!(reading.join().unwrap());
    let reading = std::thread::spawn(move || second.next().is_none());
    host.engine().remove(&id, true, false).unwrap();
    assert!(reading.join().unwrap());
}

#[test]
fn long_lines_come_in_pieces_and_a_line_without_end_is_kept() {
    needs_root!();
    let host = Host::new();
    let script = "awk 'BEGIN { for (i = 0; i < 40000; i++) printf \"x\"; print \"\" }'; echo short; printf 'no end'";
    let id = host.start(shell(&host, script, 10 << 20, 3));
    host.wait(&id);
    let lines = lines(&host, &id, LogQuery::default());
    let lengths: Vec<usize> = lines.iter().map(|line| line.text.len()).collect();
    assert_eq!(lengths, [16384, 16384, 7233, 6, 6]);
    assert_eq!(lines.iter().map(LogLine::is_partial).collect::<Vec<_>>(), [true, true, false, false, true]);
    assert_eq!(lines[0].time, lines[2].time, "the pieces of a line share its time");
    // A line in pieces is one line.
    assert_eq!(texts(&host, &id, LogQuery { tail: Some(3), ..LogQuery::default() }).len(), 5);
    assert_eq!(texts(&host, &id, LogQuery { tail: Some(2), ..LogQuery::default() }), ["short\n", "no end"]);
}

#[test]
fn lines_are_chosen_by_number_time_and_stream() {
    needs_root!();
    let host = Host::new();
    let id = host.start_args(&[
        "/bin/sh",
        "-c",
        "for i in 1 2 3 4 5 6; do echo o$i; usleep 20000; echo e$i >&2; usleep 20000; done",
    ]);
    host.wait(&id);
    let all = lines(&host, &id, LogQuery::default());
    assert_eq!(all.len(), 12);
    assert!(all.windows(2).all(|pair| pair[0].time <= pair[1].time));
    let query = LogQuery { tail: Some(2), stream: Some(Stream::Stdout), ..LogQuery::default() };
    assert_eq!(texts(&host, &id, query), ["o5\n", "o6\n"]);
    let query = LogQuery { since: Some(all[3].time), until: Some(all[5].time), ..LogQuery::default() };
    assert_eq!(texts(&host, &id, query), ["e2\n", "o3\n", "e3\n"]);
    assert_eq!(texts(&host, &id, LogQuery { tail: Some(0), ..LogQuery::default() }), Vec::<String>::new());
    assert_eq!(texts(&host, &id, LogQuery { tail: Some(100), ..LogQuery::default() }).len(), 12);
}

#[test]
fn a_log_of_none_is_empty() {
    needs_root!();
    let host = Host::new();
    let mut config = host.container(&["/bin/echo", "hello"]);
    config.logging.none = true;
    let id = host.start(config);
    host.wait(&id);
    assert_eq!(host.output(&id), "");
}

/// A small tmpfs for the engine's data, unmounted whatever happens.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new(size: &str) -> Self {
        let directory = tempfile::Builder::new().prefix("orch-engine-").tempdir().unwrap();
        std::fs::create_dir(directory.path().join("disk")).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "orch-test"])
            .arg(directory.path().join("disk"))
            .status();
        assert!(mounted.unwrap().success());
        Self(directory)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path().join("disk")).status();
    }
}

#[test]
fn a_full_disk_costs_counted_lines_and_no_container() {
    needs_root!();
    let disk = SmallDisk::new("24m");
    let on_disk = tempfile::Builder::new().prefix("orch-engine-").tempdir_in(disk.0.path().join("disk")).unwrap();
    let host = Host::in_directory(on_disk);
    let filler = disk.0.path().join("disk/filler");
    let script = "i=0; while :; do i=$((i+1)); echo $i; test $((i%200)) = 0 && usleep 1000; done";
    let id = host.start(shell(&host, script, 0, 1));
    eventually("it writes", || host.output(&id).lines().count() > 1000);
    // Everything but what the log takes next.
    let full = std::fs::File::create(&filler).unwrap();
    let mut full = std::io::BufWriter::with_capacity(4096, full);
    while std::io::Write::write_all(&mut full, &[1; 4096]).is_ok() {}
    drop(full);
    let directory = host.engine().log_directory(&id).unwrap();
    let size = || std::fs::metadata(directory.join("log.json")).unwrap().len();
    let mut before = 0;
    eventually("the log cannot grow", || std::mem::replace(&mut before, size()) == before && before > 0);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(host.state(&id).phase, orch_engine::container::Phase::Running);
    std::fs::remove_file(&filler).unwrap();
    eventually("the log grows again", || size() > before);
    eventually("the loss is told", || host.output(&id).contains("are missing here"));
    host.engine().kill(&id, 9).unwrap();
    host.wait(&id);
    let lines: Vec<String> = texts(&host, &id, LogQuery::default());
    let notice = lines.iter().position(|line| line.contains("are missing here")).unwrap();
    println!("{}", lines[notice].trim());
    let count: u64 = lines[notice].split(' ').nth(1).unwrap().parse().unwrap();
    let whole = |line: &String| line.trim().parse::<u64>().unwrap();
    let (last, next) = (whole(&lines[notice - 1]), whole(&lines[notice + 1]));
    assert_eq!(next - last - 1, count, "as many as were counted");
    assert!(lines[..notice].iter().map(whole).eq(1..=last), "whole lines before");
    assert!(count > 0);
}

#[test]
fn a_flood_stays_within_its_bounds_and_the_shim_stays_small() {
    needs_root!();
    let host = Host::new();
    let id = host.start(shell(&host, "yes 'a line of some forty characters, many times'", 1 << 20, 3));
    let directory = host.engine().log_directory(&id).unwrap();
    eventually("it has rotated three times", || directory.join("log.json.2").exists());
    let other = host.start_args(&["/bin/sh", "-c", "for i in $(seq 1 50); do echo $i; usleep 1000; done"]);
    host.wait(&other);
    assert_eq!(host.output(&other).lines().count(), 50, "the neighbour's log is whole");
    let files = std::fs::read_dir(&directory).unwrap().flatten();
    let bytes: u64 = files
        .filter(|file| file.file_name().to_string_lossy().starts_with("log.json"))
        .map(|file| file.metadata().map_or(0, |meta| meta.len()))
        .sum();
    assert!(bytes <= 3 << 20, "{bytes}");
    let shim = host.shims()[0];
    let status = std::fs::read_to_string(format!("/proc/{shim}/status")).unwrap();
    let resident = status.lines().find(|line| line.starts_with("RssAnon")).unwrap();
    println!("shim under a flood: {}", resident.replace('\t', " "));
    let kilobytes: u64 = resident.split_ascii_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(kilobytes < 8 << 10, "{resident}");
    host.engine().stop(&id, None, Some(0)).unwrap();
}
