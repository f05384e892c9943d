//! Device filters for cgroup v2: programs of type BPF_PROG_TYPE_CGROUP_DEVICE, emitted by hand.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, PoisonError};

use super::own;
use crate::cgroup::DeviceRule;

// bpf(2), from include/uapi/linux/bpf.h.
const BPF_PROG_LOAD: u32 = 5;
const BPF_PROG_ATTACH: u32 = 8;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_CGROUP_DEVICE: u32 = 6;
/// Beside the programs of others (systemd's, an outer container's): all must allow.
const BPF_F_ALLOW_MULTI: u32 = 2;

// Registers as the program uses them. r1 is the context that the kernel passes, r0 the answer.
const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;
const SCRATCH: u8 = 6;

// Instruction codes: class | size or operation | source.
const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xbf;
const MOVE_CONSTANT: u8 = 0xb7;
const AND_CONSTANT: u8 = 0x57;
const SHIFT_RIGHT_CONSTANT: u8 = 0x77;
const JUMP_NOT_EQUAL_CONSTANT: u8 = 0x55;
const JUMP_NOT_EQUAL: u8 = 0x5d;
const EXIT: u8 = 0x95;

/// One instruction: code, registers, jump offset, constant.
fn instruction(code: u8, destination: u8, source: u8, offset: i16, constant: u32) -> [u8; 8] {
    let mut bytes = [code, (source << 4) | destination, 0, 0, 0, 0, 0, 0];
    bytes[2..4].copy_from_slice(&offset.to_ne_bytes());
    bytes[4..8].copy_from_slice(&constant.to_ne_bytes());
    bytes
}

/// The program for a rule set. A rule that matches answers 1 at once, the end answers 0.
fn assemble(rules: &[DeviceRule]) -> Vec<[u8; 8]> {
    // struct bpf_cgroup_dev_ctx { u32 access_type (low half: kind, high half: access); u32 major; u32 minor; }
    let mut program = vec![
        instruction(LOAD_WORD, KIND, CONTEXT, 0, 0),
        instruction(MOVE, ACCESS, KIND, 0, 0),
        instruction(AND_CONSTANT, KIND, 0, 0, 0xffff),
        instruction(SHIFT_RIGHT_CONSTANT, ACCESS, 0, 0, 16),
        instruction(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        instruction(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules {
        // (code, register, operand) of each condition's jump to the next rule.
        let mut tests: Vec<[u8; 8]> = Vec::new();
        match rule.kind {
            'b' => tests.push(instruction(JUMP_NOT_EQUAL_CONSTANT, KIND, 0, 0, 1)),
            'c' => tests.push(instruction(JUMP_NOT_EQUAL_CONSTANT, KIND, 0, 0, 2)),
            _ => {}
        }
        if rule.access & 7 != 7 {
            // Everything asked for must be among what the rule allows.
            tests.push(instruction(MOVE, SCRATCH, ACCESS, 0, 0));
            tests.push(instruction(AND_CONSTANT, SCRATCH, 0, 0, u32::from(rule.access)));
            tests.push(instruction(JUMP_NOT_EQUAL, SCRATCH, ACCESS, 0, 0));
        }
        for (register, wanted) in [(MAJOR, rule.major), (MINOR, rule.minor)] {
            if let Some(wanted) = wanted {
                tests.push(instruction(JUMP_NOT_EQUAL_CONSTANT, register, 0, 0, wanted));
            }
        }
        // The two instructions of the answer follow the tests.
        let length = tests.len() + 2;
        for (index, mut test) in tests.into_iter().enumerate() {
            if matches!(test[0], JUMP_NOT_EQUAL_CONSTANT | JUMP_NOT_EQUAL) {
                let over = i16::try_from(length - index - 1).unwrap_or(i16::MAX);
                test[2..4].copy_from_slice(&over.to_ne_bytes());
            }
            program.push(test);
        }
        program.push(instruction(MOVE_CONSTANT, ANSWER, 0, 0, 1));
        program.push(instruction(EXIT, 0, 0, 0, 0));
    }
    program.push(instruction(MOVE_CONSTANT, ANSWER, 0, 0, 0));
    program.push(instruction(EXIT, 0, 0, 0, 0));
    program
}

/// Programs already loaded by this process, by their rules: loading costs 130 µs, attaching 35.
static LOADED: Mutex<Option<HashMap<Vec<DeviceRule>, Arc<OwnedFd>>>> = Mutex::new(None);

/// The program for a rule set, loaded at most once by this process.
pub(crate) fn device_program(rules: &[DeviceRule]) -> io::Result<Arc<OwnedFd>> {
    let mut loaded = LOADED.lock().unwrap_or_else(PoisonError::into_inner);
    let loaded = loaded.get_or_insert_default();
    if let Some(program) = loaded.get(rules) {
        return Ok(Arc::clone(program));
    }
    let program = Arc::new(load(&assemble(rules))?);
    loaded.insert(rules.to_vec(), Arc::clone(&program));
    Ok(program)
}

fn load(program: &[[u8; 8]]) -> io::Result<OwnedFd> {
    #[repr(C)]
    #[derive(Default)]
    struct Load {
        kind: u32,
        length: u32,
        instructions: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log: u64,
        kernel_version: u32,
        flags: u32,
        name: [u8; 16],
    }
    // The kernel wants a licence string; the program calls no helper that asks for a particular one.
    let license = c"Apache-2.0";
    let mut attr = Load {
        kind: BPF_PROG_TYPE_CGROUP_DEVICE,
        length: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..Load::default()
    };
    attr.name[..12].copy_from_slice(b"orch_devices");
    // SAFETY: `attr` is a live, zero-filled prefix of union bpf_attr of the size given; its pointers are live arrays of the lengths
    // given. The kernel verifies the program.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attr, size_of::<Load>()) };
    if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(own(fd as RawFd)) }
}

/// Attaches a program to a cgroup v2 directory.
pub(crate) fn attach_device_program(program: &OwnedFd, cgroup: RawFd) -> io::Result<()> {
    #[repr(C)]
    struct Attach {
        target: u32,
        program: u32,
        kind: u32,
        flags: u32,
    }
    let attr = Attach {
        target: cgroup as u32,
        program: program.as_raw_fd() as u32,
        kind: BPF_CGROUP_DEVICE,
        flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: `attr` is a live prefix of union bpf_attr of the size given; both descriptors are open.
    let result = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_ATTACH, &raw const attr, size_of::<Attach>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
