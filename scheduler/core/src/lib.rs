//! The replicated state machine: what the cluster shall be, as a function of a log of commands. Pure.
//!
//! [`State`] is everything that managers agree on. [`State::apply`] takes the next [`Entry`] of the log and is total: a command that
//! cannot be done is a [`Refusal`] and changes nothing. Every change of intent goes the same way, *plan → execute → settle*:
//!
//! * [`plan`] compares what is asked for with the state and makes a [`Plan`], a graph of operations with their causes. The very same
//!   function answers `orch plan`.
//! * executing copies the plan's records into the state; it decides nothing.
//! * `settle` looks at every task that may be affected and decides how much of its goal its node may be told now: a task waits for
//!   the slot's former container, for what it depends on, and goes down only after its dependents.
//!
//! [`Assignments`] turns the state into what each node is told.
//!
//! Deliberately absent: clocks, random numbers, hash maps, input and output. Times and seeds come with the log entry. Restarting a
//! crashed container is absent too: that is the agent's job, so that it works without a manager; here only its statuses are seen.
#![forbid(unsafe_code)]

mod address;
mod apply;
mod assignment;
mod command;
mod endpoint;
mod error;
mod faulty;
mod file_object;
mod gate;
mod identity;
mod member;
mod node;
mod place;
pub mod plan;
mod presence;
mod relocate;
mod report;
mod request;
mod rollout;
pub mod security;
mod settle;
mod state;
mod sum;

pub use address::Pool;
pub use assignment::Assignments;
pub use command::{
    Act, Action, Answer, ApplyStack, AttachTask, ChangeObject, Changes, Command, DetachTask, Down, Entry, NewNetwork,
    NewObject, NewVolume, Outcome, ReserveAddress, RunOneOff, Scale, SetTaskDesired, UpOptions, UpdateNode,
    UpdateService,
};
pub use error::{Clash, Hint, Missing, Refusal, SpecFault};
pub use member::{Member, MemberChange, MemberRefusal, MemberRole, Members};
pub use place::{Explanation, Obstacle};
pub use plan::Plan;
pub use request::Requests;
pub use security::{Security, SecurityCommand, SecurityFault};
pub use state::{
    Availability, ClusterSettings, Event, EventRing, FileObject, Former, HandOver, Lane, MeshPort, Network,
    NetworkDefinition, NetworkPhase, Node, NodeRole, NodeState, ObjectKind, Removing, Reservation, Revision,
    RevisionId, Rollout, RolloutRules, RolloutState, Seats, Service, Serving, Stack, State, Task, Tasks, Timer, Turn,
    Usage, Vip, Volume, Wait, Withdrawal,
};
pub use sum::SUMMED;
