//! What the default profile and Docker's JSON profiles say, as a [`Policy`].

use serde::Deserialize;

use super::ProfileError;
use super::assemble::{Calls, Comparison, Policy, Rule, Test, verdict};
use super::table::{Abi, SYSCALLS, Who, find};
use crate::runtime::capability_bit;

/// The ABI that this program is built for.
#[cfg(target_arch = "x86_64")]
const NATIVE: Abi = Abi::X86_64;
#[cfg(target_arch = "aarch64")]
const NATIVE: Abi = Abi::Aarch64;

/// Beside it: 32-bit programs are common on x86.
#[cfg(target_arch = "x86_64")]
const COMPATIBLE: &[Abi] = &[Abi::I386];
#[cfg(target_arch = "aarch64")]
const COMPATIBLE: &[Abi] = &[];

/// CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID, NEWNET.
const NEW_NAMESPACES: u64 = 0x7e02_0000;

/// PER_LINUX, PER_LINUX32, both with UNAME26, and "tell me".
const PERSONALITIES: [u64; 5] = [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// What the kernel takes of an `int` argument.
const INT: Comparison = Comparison::Masked(0xffff_ffff);

/// The default profile for a container with these capabilities.
pub(super) fn default_policy(capabilities: u64) -> Policy {
    let calls = |abi: Abi| {
        let rules = |who| rules(who, capabilities);
        SYSCALLS.iter().filter_map(|call| Some((call.number(abi)?, rules(call.who)?))).collect::<Calls>()
    };
    let abis = [NATIVE].iter().chain(COMPATIBLE).map(|abi| (*abi, calls(*abi))).collect();
    Policy { default: verdict::errno(libc::EPERM), unknown_is_missing: true, abis }
}

/// The rules of one call; `None`: the default.
fn rules(who: Who, capabilities: u64) -> Option<Vec<Rule>> {
    let holds = |name: &str| capability_bit(name).is_some_and(|bit| capabilities & bit != 0);
    let rule = |tests: &[Test], verdict| Rule { tests: tests.to_vec(), verdict };
    let test = |comparison, value| Test { index: 0, comparison, value };
    let allowed = rule(&[], verdict::ALLOW);
    let refused = verdict::errno(libc::EPERM);
    match who {
        Who::Always => Some(vec![allowed]),
        Who::Never => None,
        Who::With(names) => names.iter().any(|name| holds(name)).then(|| vec![allowed]),
        Who::Socket => {
            let families = [libc::AF_ALG, libc::AF_VSOCK].map(|family| rule(&[test(INT, family as u64)], refused));
            Some(families.into_iter().chain([allowed]).collect())
        }
        Who::Personality => {
            Some(PERSONALITIES.iter().map(|value| rule(&[test(INT, *value)], verdict::ALLOW)).collect())
        }
        Who::Fork if holds("SYS_ADMIN") => Some(vec![allowed]),
        Who::Fork => Some(vec![rule(&[test(Comparison::Masked(NEW_NAMESPACES), 0)], verdict::ALLOW)]),
        Who::Fork3 if holds("SYS_ADMIN") => Some(vec![allowed]),
        Who::Fork3 => Some(vec![rule(&[], verdict::errno(libc::ENOSYS))]),
    }
}

/// Docker's JSON.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Profile {
    default_action: String,
    default_errno_ret: Option<i32>,
    #[serde(default)]
    architectures: Option<Vec<String>>,
    #[serde(default)]
    arch_map: Option<Vec<ArchMap>>,
    #[serde(default)]
    syscalls: Option<Vec<Group>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Group {
    #[serde(default)]
    names: Option<Vec<String>>,
    #[serde(default)]
    name: Option<String>,
    action: String,
    errno_ret: Option<i32>,
    #[serde(default)]
    args: Option<Vec<Argument>>,
    #[serde(default)]
    includes: Option<Condition>,
    #[serde(default)]
    excludes: Option<Condition>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Condition {
    #[serde(default)]
    caps: Option<Vec<String>>,
    #[serde(default)]
    arches: Option<Vec<String>>,
    #[serde(default)]
    min_kernel: Option<String>,
}

/// A profile's text as a policy for a container with these capabilities on this kernel.
pub(super) fn custom_policy(text: &str, capabilities: u64) -> Result<Policy, ProfileError> {
    let profile: Profile = serde_json::from_str(text)?;
    let default = action(&profile.default_action, profile.default_errno_ret)?;
    let mut abis: Vec<(Abi, Calls)> = abis(&profile).into_iter().map(|abi| (abi, Calls::new())).collect();
    for group in profile.syscalls.iter().flatten() {
        let met = group.includes.as_ref().is_none_or(|condition| condition.holds(capabilities, true));
        let barred = group.excludes.as_ref().is_some_and(|condition| condition.holds(capabilities, false));
        if !met || barred {
            continue;
        }
        let verdict = action(&group.action, group.errno_ret)?;
        let tests = group.args.iter().flatten().map(Argument::test).collect::<Result<Vec<_>, _>>()?;
        // A call that this kernel's ABI does not know cannot be made; profiles name calls of all processors.
        for call in group.names.iter().flatten().chain(&group.name).filter_map(|name| find(name)) {
            for (abi, calls) in &mut abis {
                if let Some(number) = call.number(*abi) {
                    calls.entry(number).or_default().push(Rule { tests: tests.clone(), verdict });
                }
            }
        }
    }
    // A rule without conditions goes before those with, whatever their order (libseccomp).
    for (_, calls) in &mut abis {
        calls.values_mut().for_each(|rules| rules.sort_by_key(|rule| !rule.tests.is_empty()));
    }
    let refuses = !matches!(default, verdict::ALLOW | verdict::LOG);
    Ok(Policy { default, unknown_is_missing: refuses, abis })
}

/// Those that the profile names beside the native one.
fn abis(profile: &Profile) -> Vec<Abi> {
    let name = |abi: Abi| match abi {
        Abi::X86_64 => "SCMP_ARCH_X86_64",
        Abi::I386 => "SCMP_ARCH_X86",
        Abi::Aarch64 => "SCMP_ARCH_AARCH64",
    };
    let mapped = profile.arch_map.iter().flatten().filter(|map| map.architecture == name(NATIVE));
    let named: Vec<&String> = mapped
        .flat_map(|map| map.sub_architectures.iter().flatten())
        .chain(profile.architectures.iter().flatten())
        .collect();
    let more = COMPATIBLE.iter().filter(|abi| named.iter().any(|named| *named == name(**abi)));
    std::iter::once(&NATIVE).chain(more).copied().collect()
}

impl Condition {
    /// `all`: everything listed must hold (includes); else anything (excludes).
    fn holds(&self, capabilities: u64, all: bool) -> bool {
        let held = |name: &String| capability_bit(name).is_some_and(|bit| capabilities & bit != 0);
        let arch = if NATIVE == Abi::Aarch64 { "arm64" } else { "amd64" };
        let mut answers: Vec<bool> = self.caps.iter().flatten().map(held).collect();
        if let Some(arches) = self.arches.as_ref().filter(|arches| !arches.is_empty()) {
            answers.push(arches.iter().any(|name| name == arch));
        }
        if let Some(wanted) = &self.min_kernel {
            answers.push(kernel_is_at_least(wanted));
        }
        if all { answers.iter().all(|answer| *answer) } else { answers.iter().any(|answer| *answer) }
    }
}

fn kernel_is_at_least(wanted: &str) -> bool {
    let version = |text: &str| {
        let mut numbers =
            text.split(|letter: char| !letter.is_ascii_digit()).map_while(|word| word.parse::<u32>().ok());
        (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
    };
    nix::sys::utsname::uname().is_ok_and(|name| version(&name.release().to_string_lossy()) >= version(wanted))
}

impl Argument {
    fn test(&self) -> Result<Test, ProfileError> {
        let (comparison, value) = match self.op.as_str() {
            "SCMP_CMP_EQ" => (Comparison::Equal, self.value),
            "SCMP_CMP_NE" => (Comparison::NotEqual, self.value),
            "SCMP_CMP_LT" => (Comparison::Less, self.value),
            "SCMP_CMP_LE" => (Comparison::LessOrEqual, self.value),
            "SCMP_CMP_GT" => (Comparison::Greater, self.value),
            "SCMP_CMP_GE" => (Comparison::GreaterOrEqual, self.value),
            "SCMP_CMP_MASKED_EQ" => (Comparison::Masked(self.value), self.value_two),
            other => return Err(ProfileError::Word { what: "comparison", word: other.to_owned() }),
        };
        if self.index > 5 {
            return Err(ProfileError::Word { what: "argument", word: self.index.to_string() });
        }
        Ok(Test { index: self.index, comparison, value })
    }
}

fn action(name: &str, value: Option<i32>) -> Result<u32, ProfileError> {
    Ok(match name {
        "SCMP_ACT_ALLOW" => verdict::ALLOW,
        "SCMP_ACT_LOG" => verdict::LOG,
        "SCMP_ACT_ERRNO" => verdict::errno(value.unwrap_or(libc::EPERM)),
        "SCMP_ACT_TRACE" => verdict::TRACE | (value.unwrap_or(libc::EPERM) as u32 & 0xffff),
        "SCMP_ACT_TRAP" => verdict::TRAP,
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => verdict::KILL_THREAD,
        "SCMP_ACT_KILL_PROCESS" => verdict::KILL_PROCESS,
        other => return Err(ProfileError::Word { what: "action", word: other.to_owned() }),
    })
}
