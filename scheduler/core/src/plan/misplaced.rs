//! Tasks that stay what they are and not where they are: their nodes are not what the service wants of nodes now.
//!
//! Nothing is planned here. Whatever is misplaced is made elsewhere by [`relocate`](crate::relocate), whoever has changed its mind, the file
//! or a node; a plan must not be silent about it.

use orch_spec::assignment::{DesiredTask, TaskId};

use super::Verb;
use super::draft::Draft;
use super::replicas::Want;
use crate::place::{self, Judge, Obstacle};

/// Says of tasks that are kept which are going to be made elsewhere, and what no node can take.
pub(super) fn announce(draft: &mut Draft<'_>, want: &Want<'_>, kept: &[TaskId]) {
    if !draft.state.is_cluster() || want.keep {
        return;
    }
    let (mut moves, mut stuck) = (Vec::new(), None);
    {
        let revision = draft.revision(want.revision);
        let mut judge: Option<Judge<'_>> = None;
        let tasks = kept.iter().filter_map(|id| draft.task(id));
        for task in tasks.filter(|task| matches!(task.goal, DesiredTask::Running | DesiredTask::Paused)) {
            let Some((home, node)) = task.node.as_ref().and_then(|home| draft.state.nodes.get_key_value(home)) else {
                continue;
            };
            let Some(missed) = place::missed(&revision.spec, home, node) else { continue };
            let judge = judge.get_or_insert_with(|| Judge::with(draft.state, task, revision));
            let fits =
                draft.state.nodes.iter().any(|(id, node)| id != home && judge.obstacle(id, node, None).is_none());
            match fits {
                true => moves.push((task.id.clone(), format!("{} {}", name(node, home), missed.on_one()))),
                false => stuck = Some(missed),
            }
        }
    }
    for (task, cause) in moves {
        draft.task_operation(Verb::Recreate, &task, cause);
    }
    if let Some(missed) = stuck {
        let wish = match missed {
            Obstacle::Constraint(constraint) => format!("meets `{constraint}` and"),
            _ => "of its platform".to_owned(),
        };
        draft.warn(format!("service {}: no other node {wish} has room, so what runs stays where it is", want.service));
    }
}

fn name(node: &crate::state::Node, id: &orch_spec::assignment::NodeId) -> String {
    if node.facts.hostname.is_empty() { id.0.clone() } else { node.facts.hostname.clone() }
}
