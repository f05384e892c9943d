//! From a policy to the classic BPF program that the kernel runs at every system call.
//!
//! Program length decides the cost of installing a filter (it is verified, translated, and emulated once per call number), so calls are
//! merged into ranges of equal answers and found by binary search: measured 35 µs instead of 277 µs for a chain of comparisons.

use std::collections::BTreeMap;

use super::table::Abi;

/// seccomp(2)'s answers: the action in the upper half, its value in the lower.
pub(super) mod verdict {
    pub(in crate::seccomp) const KILL_PROCESS: u32 = 0x8000_0000;
    pub(in crate::seccomp) const KILL_THREAD: u32 = 0;
    pub(in crate::seccomp) const TRAP: u32 = 0x0003_0000;
    pub(in crate::seccomp) const ERRNO: u32 = 0x0005_0000;
    pub(in crate::seccomp) const TRACE: u32 = 0x7ff0_0000;
    pub(in crate::seccomp) const LOG: u32 = 0x7ffc_0000;
    pub(in crate::seccomp) const ALLOW: u32 = 0x7fff_0000;

    /// Answers with this error.
    pub(in crate::seccomp) const fn errno(number: i32) -> u32 {
        // The kernel keeps 12 bits.
        ERRNO | (number as u32 & 0xfff)
    }
}

/// How an argument is compared with a value, both as unsigned 64-bit numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    /// Equal after masking the argument.
    Masked(u64),
}

/// A condition on one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Test {
    /// 0..5.
    pub(super) index: u8,
    pub(super) comparison: Comparison,
    pub(super) value: u64,
}

/// An answer when all conditions hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) tests: Vec<Test>,
    pub(super) verdict: u32,
}

/// The calls of one ABI: the first rule whose conditions hold answers, else the policy's default.
pub(super) type Calls = BTreeMap<u32, Vec<Rule>>;

/// What a filter says.
#[derive(Debug, Clone)]
pub(super) struct Policy {
    /// For calls without a rule.
    pub(super) default: u32,
    /// Calls above the highest with a rule are answered "no such call" instead: a program made for a newer kernel takes that as a
    /// hint to do without, and EPERM as a failure.
    pub(super) unknown_is_missing: bool,
    /// Every ABI that a process may use; others kill it.
    pub(super) abis: Vec<(Abi, Calls)>,
}

/// One instruction, `struct sock_filter`.
#[derive(Debug, Clone, Copy)]
struct Instruction {
    code: u16,
    /// Distance if true.
    then: u8,
    /// Distance if false.
    otherwise: u8,
    constant: u32,
}

// linux/filter.h: class | size or operation | source.
const LOAD_WORD: u16 = 0x20;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const AND: u16 = 0x54;
const RETURN: u16 = 0x06;

// struct seccomp_data: int nr; u32 arch; u64 instruction_pointer; u64 args[6].
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// x32 calls come with the architecture of x86_64 and this bit.
const X32_BIT: u32 = 0x4000_0000;

impl Abi {
    /// AUDIT_ARCH_* of linux/audit.h.
    const fn audit(self) -> u32 {
        match self {
            Self::X86_64 => 0xc000_003e,
            Self::I386 => 0x4000_0003,
            Self::Aarch64 => 0xc000_00b7,
        }
    }
}

const fn instruction(code: u16, constant: u32) -> Instruction {
    Instruction { code, then: 0, otherwise: 0, constant }
}

/// The program as bytes, eight an instruction.
pub(super) fn assemble(policy: &Policy) -> Vec<u8> {
    let mut program = vec![instruction(LOAD_WORD, ARCHITECTURE)];
    for (abi, calls) in &policy.abis {
        let mut body = vec![instruction(LOAD_WORD, NUMBER)];
        body.extend(tree(&ranges(*abi, calls, policy)));
        // Over the body when it is another ABI: by a long jump, since a conditional one reaches 255 instructions.
        program.push(Instruction { code: JUMP_EQUAL, then: 1, otherwise: 0, constant: abi.audit() });
        program.push(instruction(JUMP, body.len() as u32));
        program.extend(body);
    }
    program.push(instruction(RETURN, verdict::KILL_PROCESS));
    program.iter().flat_map(|one| one.bytes()).collect()
}

impl Instruction {
    fn bytes(self) -> [u8; 8] {
        let mut bytes = [0; 8];
        bytes[..2].copy_from_slice(&self.code.to_ne_bytes());
        bytes[2] = self.then;
        bytes[3] = self.otherwise;
        bytes[4..].copy_from_slice(&self.constant.to_ne_bytes());
        bytes
    }
}

/// All numbers as consecutive ranges: where each begins and the code that answers it.
fn ranges(abi: Abi, calls: &Calls, policy: &Policy) -> Vec<(u32, Vec<Instruction>)> {
    let mut ranges: Vec<(u32, Vec<Rule>)> = Vec::new();
    let mut push = |start: u32, rules: Vec<Rule>| {
        if ranges.last().is_none_or(|(_, last)| *last != rules) {
            ranges.push((start, rules));
        }
    };
    let always = |verdict| vec![Rule { tests: Vec::new(), verdict }];
    let mut next = 0;
    for (number, rules) in calls {
        if *number > next {
            push(next, always(policy.default));
        }
        // What follows an unconditional rule is never reached.
        let reached = rules.iter().position(|rule| rule.tests.is_empty()).map_or(rules.len(), |index| index + 1);
        let mut rules = rules[..reached].to_vec();
        if rules.last().is_none_or(|rule| !rule.tests.is_empty()) {
            rules.extend(always(policy.default));
        }
        push(*number, rules);
        next = number + 1;
    }
    push(next, always(if policy.unknown_is_missing { verdict::errno(libc::ENOSYS) } else { policy.default }));
    if abi == Abi::X86_64 {
        // No image uses x32 and most kernels are built without: the answer is theirs.
        push(X32_BIT, always(verdict::errno(libc::ENOSYS)));
    }
    ranges.into_iter().map(|(start, rules)| (start, leaf(&rules))).collect()
}

/// Binary search; every path ends in an answer.
fn tree(ranges: &[(u32, Vec<Instruction>)]) -> Vec<Instruction> {
    if let [(_, leaf)] = ranges {
        return leaf.clone();
    }
    let (left, right) = ranges.split_at(ranges.len() / 2);
    let pivot = right[0].0;
    let (left, right) = (tree(left), tree(right));
    let mut code = match u8::try_from(left.len()) {
        Ok(distance) => {
            vec![Instruction { code: JUMP_GREATER_OR_EQUAL, then: distance, otherwise: 0, constant: pivot }]
        }
        Err(_) => vec![
            Instruction { code: JUMP_GREATER_OR_EQUAL, then: 0, otherwise: 1, constant: pivot },
            instruction(JUMP, left.len() as u32),
        ],
    };
    code.extend(left);
    code.extend(right);
    code
}

/// The rules of one call, one after the other.
fn leaf(rules: &[Rule]) -> Vec<Instruction> {
    let mut code = Vec::new();
    for rule in rules {
        // Backwards: each test must know how far it is to the next rule.
        let mut block = vec![instruction(RETURN, rule.verdict)];
        for test in rule.tests.iter().rev() {
            block.splice(0..0, condition(test, block.len()));
        }
        code.extend(block);
    }
    code
}

/// Falls through when the condition holds, else jumps over the `rest` instructions that follow it.
fn condition(test: &Test, rest: usize) -> Vec<Instruction> {
    let low = ARGUMENTS + 8 * u32::from(test.index);
    let high = low + 4;
    let (value_low, value_high) = (test.value as u32, (test.value >> 32) as u32);
    // A rule has at most six tests of eight instructions, so no distance overflows.
    let fail = |following: usize| u8::try_from(rest + following).unwrap_or(u8::MAX);
    let jump = |code, constant, then, otherwise| Instruction { code, then, otherwise, constant };
    let load = |offset| instruction(LOAD_WORD, offset);
    match test.comparison {
        Comparison::Equal => vec![
            load(high),
            jump(JUMP_EQUAL, value_high, 0, fail(2)),
            load(low),
            jump(JUMP_EQUAL, value_low, 0, fail(0)),
        ],
        Comparison::Masked(mask) => vec![
            load(high),
            instruction(AND, (mask >> 32) as u32),
            jump(JUMP_EQUAL, value_high, 0, fail(3)),
            load(low),
            instruction(AND, mask as u32),
            jump(JUMP_EQUAL, value_low, 0, fail(0)),
        ],
        Comparison::NotEqual => {
            vec![load(high), jump(JUMP_EQUAL, value_high, 0, 2), load(low), jump(JUMP_EQUAL, value_low, fail(0), 0)]
        }
        Comparison::Greater => ordered(high, low, value_high, value_low, JUMP_GREATER, true, &fail),
        Comparison::GreaterOrEqual => ordered(high, low, value_high, value_low, JUMP_GREATER_OR_EQUAL, true, &fail),
        Comparison::LessOrEqual => ordered(high, low, value_high, value_low, JUMP_GREATER, false, &fail),
        Comparison::Less => ordered(high, low, value_high, value_low, JUMP_GREATER_OR_EQUAL, false, &fail),
    }
}

/// Holds when `argument code value` is `wanted`: decided by the upper words unless they are equal.
fn ordered(
    high: u32,
    low: u32,
    value_high: u32,
    value_low: u32,
    code: u16,
    wanted: bool,
    fail: &dyn Fn(usize) -> u8,
) -> Vec<Instruction> {
    let (hit, miss) = if wanted { (0, fail(0)) } else { (fail(0), 0) };
    let (greater, less) = if wanted { (3, fail(2)) } else { (fail(3), 2) };
    vec![
        instruction(LOAD_WORD, high),
        // Greater is the answer at once; equal needs the lower words; less is the other answer.
        Instruction { code: JUMP_GREATER, then: greater, otherwise: 0, constant: value_high },
        Instruction { code: JUMP_EQUAL, then: 0, otherwise: less, constant: value_high },
        instruction(LOAD_WORD, low),
        Instruction { code, then: hit, otherwise: miss, constant: value_low },
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel would answer: an interpreter of the instructions used here.
    fn answer(program: &[u8], arch: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let mut data = Vec::new();
        data.extend(number.to_ne_bytes());
        data.extend(arch.to_ne_bytes());
        data.extend(0u64.to_ne_bytes());
        arguments.iter().for_each(|argument| data.extend(argument.to_ne_bytes()));
        let word = |bytes: &[u8]| u32::from_ne_bytes(bytes.try_into().unwrap());
        let (mut at, mut accumulator) = (0, 0u32);
        loop {
            let one = &program[at * 8..at * 8 + 8];
            let (code, then, otherwise) = (u16::from_ne_bytes([one[0], one[1]]), one[2] as usize, one[3] as usize);
            let constant = word(&one[4..]);
            let jump = |so: bool| if so { then } else { otherwise };
            at += 1 + match code {
                LOAD_WORD => {
                    accumulator = word(&data[constant as usize..constant as usize + 4]);
                    0
                }
                AND => {
                    accumulator &= constant;
                    0
                }
                JUMP => constant as usize,
                JUMP_EQUAL => jump(accumulator == constant),
                JUMP_GREATER => jump(accumulator > constant),
                JUMP_GREATER_OR_EQUAL => jump(accumulator >= constant),
                RETURN => return constant,
                other => panic!("unknown instruction {other:#x}"),
            };
        }
    }

    fn policy(calls: Calls) -> Policy {
        Policy { default: verdict::errno(libc::EPERM), unknown_is_missing: true, abis: vec![(Abi::X86_64, calls)] }
    }

    fn allow(tests: &[Test]) -> Rule {
        Rule { tests: tests.to_vec(), verdict: verdict::ALLOW }
    }

    #[test]
    fn every_comparison_is_exact_at_its_borders() {
        type Holds = fn(u64, u64) -> bool;
        let comparisons: [(Comparison, Holds); 6] = [
            (Comparison::Equal, |a, b| a == b),
            (Comparison::NotEqual, |a, b| a != b),
            (Comparison::Less, |a, b| a < b),
            (Comparison::LessOrEqual, |a, b| a <= b),
            (Comparison::Greater, |a, b| a > b),
            (Comparison::GreaterOrEqual, |a, b| a >= b),
        ];
        let values =
            [0, 1, 2, 0xffff_fffe, 0xffff_ffff, 0x1_0000_0000, 0x1_0000_0001, 0x2_0000_0000, u64::MAX - 1, u64::MAX];
        for (comparison, holds) in comparisons {
            for value in values {
                // Two tests, so that a wrong distance lands in the wrong place.
                let tests =
                    [Test { index: 3, comparison, value }, Test { index: 0, comparison: Comparison::Equal, value: 7 }];
                let program = assemble(&policy(Calls::from([(5, vec![allow(&tests)])])));
                for argument in values {
                    let expected = if holds(argument, value) { verdict::ALLOW } else { verdict::errno(libc::EPERM) };
                    let got = answer(&program, Abi::X86_64.audit(), 5, [7, 0, 0, argument, 0, 0]);
                    assert_eq!(got, expected, "{argument:#x} {comparison:?} {value:#x}");
                    assert_eq!(
                        answer(&program, Abi::X86_64.audit(), 5, [8, 0, 0, argument, 0, 0]),
                        verdict::errno(libc::EPERM)
                    );
                }
            }
        }
    }

    #[test]
    fn numbers_find_their_range_also_across_long_jumps() {
        // Every other number: no two ranges merge, and the tree needs jumps of more than 255.
        let calls: Calls = (0..800).filter(|number| number % 2 == 1).map(|number| (number, vec![allow(&[])])).collect();
        let program = assemble(&policy(calls));
        for number in 0..800 {
            let expected = if number % 2 == 1 { verdict::ALLOW } else { verdict::errno(libc::EPERM) };
            assert_eq!(answer(&program, Abi::X86_64.audit(), number, [0; 6]), expected, "{number}");
        }
        for number in [800, 5000, X32_BIT, X32_BIT + 1, u32::MAX] {
            assert_eq!(answer(&program, Abi::X86_64.audit(), number, [0; 6]), verdict::errno(libc::ENOSYS), "{number}");
        }
        assert_eq!(answer(&program, Abi::Aarch64.audit(), 1, [0; 6]), verdict::KILL_PROCESS);
    }

    #[test]
    fn the_default_profile_is_short() {
        let program = super::super::default_filter(0xa804_25fb).unwrap();
        let instructions = program.len() / 8;
        assert!(instructions < 700, "{instructions} instructions");
        for (number, arguments, expected) in [
            (libc::SYS_read, [0; 6], verdict::ALLOW),
            (libc::SYS_keyctl, [0; 6], verdict::errno(libc::EPERM)),
            (libc::SYS_clone3, [0; 6], verdict::errno(libc::ENOSYS)),
            (libc::SYS_clone, [libc::SIGCHLD as u64, 0, 0, 0, 0, 0], verdict::ALLOW),
            (libc::SYS_clone, [libc::CLONE_NEWUSER as u64, 0, 0, 0, 0, 0], verdict::errno(libc::EPERM)),
            (libc::SYS_socket, [libc::AF_INET as u64, 0, 0, 0, 0, 0], verdict::ALLOW),
            (libc::SYS_socket, [libc::AF_ALG as u64, 0, 0, 0, 0, 0], verdict::errno(libc::EPERM)),
            // The kernel looks at the lower half only; so must the filter.
            (libc::SYS_socket, [libc::AF_ALG as u64 | 1 << 32, 0, 0, 0, 0, 0], verdict::errno(libc::EPERM)),
            (libc::SYS_socket, [libc::AF_VSOCK as u64, 0, 0, 0, 0, 0], verdict::errno(libc::EPERM)),
            (libc::SYS_personality, [0xffff_ffff, 0, 0, 0, 0, 0], verdict::ALLOW),
            (libc::SYS_personality, [0x004_0000, 0, 0, 0, 0, 0], verdict::errno(libc::EPERM)),
            (libc::SYS_mount, [0; 6], verdict::errno(libc::EPERM)),
            (1000, [0; 6], verdict::errno(libc::ENOSYS)),
        ] {
            assert_eq!(
                answer(&program, Abi::X86_64.audit(), number as u32, arguments),
                expected,
                "{number} {arguments:x?}"
            );
        }
        let admin = super::super::default_filter(1 << 21).unwrap();
        for number in [libc::SYS_mount, libc::SYS_clone3, libc::SYS_bpf] {
            assert_eq!(answer(&admin, Abi::X86_64.audit(), number as u32, [0; 6]), verdict::ALLOW, "{number}");
        }
    }

    #[test]
    fn a_custom_profile_answers_as_it_says() {
        let profile = r#"{
            "defaultAction": "SCMP_ACT_ALLOW",
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
            "syscalls": [
                {"names": ["mkdir", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5},
                {"name": "kill", "action": "SCMP_ACT_ERRNO", "args": [{"index": 1, "value": 9, "op": "SCMP_CMP_EQ"}]},
                {"names": ["reboot"], "action": "SCMP_ACT_KILL_PROCESS", "excludes": {"caps": ["CAP_SYS_BOOT"]}}
            ]
        }"#;
        let program = super::super::custom_filter(profile, 0).unwrap();
        let on_native = |number, arguments| answer(&program, Abi::X86_64.audit(), number as u32, arguments);
        assert_eq!(on_native(libc::SYS_mkdir, [0; 6]), verdict::errno(5));
        assert_eq!(on_native(libc::SYS_kill, [1, 9, 0, 0, 0, 0]), verdict::errno(libc::EPERM));
        assert_eq!(on_native(libc::SYS_kill, [1, 15, 0, 0, 0, 0]), verdict::ALLOW);
        assert_eq!(on_native(libc::SYS_reboot, [0; 6]), verdict::KILL_PROCESS);
        assert_eq!(on_native(1000, [0; 6]), verdict::ALLOW, "what is allowed by default stays so for unknown calls");
        assert_eq!(answer(&program, Abi::I386.audit(), 39, [0; 6]), verdict::errno(5));
        let with_boot = super::super::custom_filter(profile, 1 << 22).unwrap();
        assert_eq!(answer(&with_boot, Abi::X86_64.audit(), libc::SYS_reboot as u32, [0; 6]), verdict::ALLOW);
    }
}
