//! Who votes: 1, 3 or 5 of the members, replaced when lost.
//!
//! Invariants: the target is the largest odd number of members up to five; a set never grows by a
//! node that is not alive and caught up; it never changes to one that could not commit now; one
//! change is asked for at a time, the next one only after the former is done.
//! Leaves out: carrying the change out (consensus does) and who is alive (gossip knows).

use std::collections::BTreeSet;
use std::time::Duration;

use unum_proto::ids::NodeId;
use unum_proto::registry::Role;

use crate::time::Time;

/// More voters cost every write a further copy and protect against ever rarer losses.
pub const VOTERS_MAX: usize = 5;
/// A voter that was dead for this long is replaced.
pub const VOTER_DEAD_MS: u64 = 10_000;

/// A member of the cluster, as the decision sees it. Nodes that have left are not given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Member {
    pub id: NodeId,
    pub role: Role,
    pub health: Health,
    /// Its copy of the log is close to the leader's, so that it can vote usefully at once.
    pub caught_up: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    Alive,
    DeadSince(Time),
}

impl Member {
    fn alive(&self) -> bool {
        self.health == Health::Alive
    }

    fn long_dead(&self, now: Time) -> bool {
        match self.health {
            Health::Alive => false,
            Health::DeadSince(since) => now >= since.after(Duration::from_millis(VOTER_DEAD_MS)),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    pub voters: BTreeSet<NodeId>,
    pub why: Why,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    Grow,
    Shrink,
    /// A voter has left the cluster.
    Left(NodeId),
    /// A voter has been dead for a while.
    Replace(NodeId),
}

pub fn desired(members: usize) -> usize {
    let capped = members.clamp(1, VOTERS_MAX);
    if capped.is_multiple_of(2) { capped - 1 } else { capped }
}

/// The next change of the voters, if one is due.
pub fn decide(members: &[Member], voters: &BTreeSet<NodeId>, now: Time) -> Option<Change> {
    let change = depart(members, voters)
        .or_else(|| resize(members, voters))
        .or_else(|| replace(members, voters, now))?;
    can_commit(members, &change.voters).then_some(change)
}

/// A voter that is no member any more goes first, and somebody takes its place if need be.
fn depart(members: &[Member], voters: &BTreeSet<NodeId>) -> Option<Change> {
    let gone = voters.iter().find(|id| find(members, **id).is_none())?;
    let mut left: BTreeSet<NodeId> =
        voters.iter().copied().filter(|id| find(members, *id).is_some()).collect();
    fill(members, &mut left, desired(members.len()));
    trim(members, &mut left, odd_down(desired(members.len())));
    let even = left.len() > 1 && left.len().is_multiple_of(2);
    let size = left.len();
    if even {
        trim(members, &mut left, size - 1);
    }
    Some(Change { voters: left, why: Why::Left(*gone) })
}

fn resize(members: &[Member], voters: &BTreeSet<NodeId>) -> Option<Change> {
    let target = desired(members.len());
    let mut next = voters.clone();
    if voters.len() < target {
        fill(members, &mut next, target);
        let size = odd_down(next.len());
        trim(members, &mut next, size);
        (next.len() > voters.len()).then_some(Change { voters: next, why: Why::Grow })
    } else if voters.len() > target {
        trim(members, &mut next, target);
        Some(Change { voters: next, why: Why::Shrink })
    } else {
        None
    }
}

fn replace(members: &[Member], voters: &BTreeSet<NodeId>, now: Time) -> Option<Change> {
    let dead = voters
        .iter()
        .copied()
        .find(|id| find(members, *id).is_some_and(|member| member.long_dead(now)))?;
    let mut next = voters.clone();
    next.remove(&dead);
    fill(members, &mut next, voters.len());
    (next.len() == voters.len()).then_some(Change { voters: next, why: Why::Replace(dead) })
}

/// Adds living members that have caught up: full nodes before witnesses, the oldest first.
fn fill(members: &[Member], voters: &mut BTreeSet<NodeId>, size: usize) {
    let mut fit: Vec<&Member> = members
        .iter()
        .filter(|member| member.alive() && member.caught_up && !voters.contains(&member.id))
        .collect();
    fit.sort_by_key(|member| (member.role, member.id));
    let room = size.saturating_sub(voters.len());
    voters.extend(fit.into_iter().take(room).map(|member| member.id));
}

/// Drops the dead first, then witnesses, then the youngest.
fn trim(members: &[Member], voters: &mut BTreeSet<NodeId>, size: usize) {
    let mut order: Vec<NodeId> = voters.iter().copied().collect();
    order.sort_by_key(|id| match find(members, *id) {
        Some(member) => (!member.alive(), member.role == Role::Witness, *id),
        None => (true, true, *id),
    });
    order.truncate(size);
    *voters = order.into_iter().collect();
}

fn can_commit(members: &[Member], voters: &BTreeSet<NodeId>) -> bool {
    !voters.is_empty() && alive_among(members, voters) >= majority(voters.len())
}

fn alive_among(members: &[Member], voters: &BTreeSet<NodeId>) -> usize {
    members.iter().filter(|member| voters.contains(&member.id) && member.alive()).count()
}

fn find(members: &[Member], id: NodeId) -> Option<&Member> {
    members.iter().find(|member| member.id == id)
}

fn odd_down(size: usize) -> usize {
    if size > 1 && size.is_multiple_of(2) { size - 1 } else { size }
}

pub fn majority(voters: usize) -> usize {
    voters / 2 + 1
}

/// How many more losses of voters the cluster survives from now on; `None` when it has already
/// lost its majority.
pub fn losses_survivable(members: &[Member], voters: &BTreeSet<NodeId>) -> Option<usize> {
    alive_among(members, voters).checked_sub(majority(voters.len()))
}

/// The same for people, with what would change it.
pub fn explain(members: &[Member], voters: &BTreeSet<NodeId>) -> String {
    let alive = alive_among(members, voters);
    let count = voters.len();
    let need = majority(count);
    let Some(losses) = losses_survivable(members, voters) else {
        return format!(
            "no majority: {alive} of {count} voters are alive and {need} are needed; \
             bring a voter back"
        );
    };
    let now = match losses {
        0 => format!("survives no loss: {alive} of {count} voters are alive, {need} are needed"),
        1 => format!("survives the loss of 1 node: {alive} of {count} voters are alive"),
        _ => format!("survives the loss of {losses} nodes: {alive} of {count} voters are alive"),
    };
    format!("{now}; {}", advice(members.len(), count, alive))
}

fn advice(members: usize, voters: usize, alive: usize) -> &'static str {
    if alive < voters {
        return "bring the dead voter back, or let another node join in its place";
    }
    match members {
        0 | 1 => "with three nodes it would survive the loss of one",
        2 => {
            "with two nodes neither can tell the other's death from a cut line: \
             add a third node, or a witness"
        }
        3 | 4 => "with five nodes it would survive the loss of two",
        5 => "that is the most: five voters are the limit",
        _ => {
            "that is the most: five voters are the limit, because each further one delays every \
             write; other nodes hold a copy and step in when a voter is lost"
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Time = Time(1_000_000_000_000);

    /// "1 2x 3w 4z": 2 is dead for long, 3 is a witness, 4 lags behind, 5d has just died.
    fn members(script: &str) -> Vec<Member> {
        script.split_whitespace().map(member).collect()
    }

    fn member(word: &str) -> Member {
        let digits: String = word.chars().take_while(char::is_ascii_digit).collect();
        let health = match word {
            _ if word.contains('x') => Health::DeadSince(Time(0)),
            _ if word.contains('d') => Health::DeadSince(NOW),
            _ => Health::Alive,
        };
        Member {
            id: NodeId(digits.parse().unwrap()),
            role: if word.contains('w') { Role::Witness } else { Role::Node },
            health,
            caught_up: !word.contains('z'),
        }
    }

    fn check(script: &str, voters: &[u64], expected: Option<(&[u64], Why)>) {
        let voters = voters.iter().copied().map(NodeId).collect();
        let change = decide(&members(script), &voters, NOW);
        let expected = expected.map(|(voters, why)| Change {
            voters: voters.iter().copied().map(NodeId).collect(),
            why,
        });
        assert_eq!(change, expected, "{script}");
    }

    #[test]
    fn voters_grow_from_one_to_three_to_five() {
        check("1", &[1], None);
        check("1 2", &[1], None);
        check("1 2 3", &[1], Some((&[1, 2, 3], Why::Grow)));
        check("1 2 3 4", &[1, 2, 3], None);
        check("1 2 3 4 5", &[1, 2, 3], Some((&[1, 2, 3, 4, 5], Why::Grow)));
        check("1 2 3 4 5 6", &[1, 2, 3, 4, 5], None);
    }

    #[test]
    fn a_witness_makes_two_nodes_three_voters() {
        check("1 2 3w", &[1], Some((&[1, 2, 3], Why::Grow)));
        check("1 2w 3 4", &[1], Some((&[1, 3, 4], Why::Grow)));
    }

    #[test]
    fn only_the_living_and_caught_up_become_voters() {
        check("1 2 3z", &[1], None);
        check("1 2 3d", &[1], None);
        check("1 2 3 4z 5", &[1, 2, 3], None);
    }

    #[test]
    fn a_voter_dead_for_long_is_replaced_by_a_living_learner() {
        check("1 2x 3 4", &[1, 2, 3], Some((&[1, 3, 4], Why::Replace(NodeId(2)))));
        check("1 2d 3 4", &[1, 2, 3], None);
        check("1 2x 3", &[1, 2, 3], None);
        check(
            "1 2x 3x 4 5 6 7",
            &[1, 2, 3, 4, 5],
            Some((&[1, 3, 4, 5, 6], Why::Replace(NodeId(2)))),
        );
    }

    #[test]
    fn voters_that_left_go_and_the_number_stays_odd() {
        check("1 3", &[1, 2, 3], Some((&[1], Why::Left(NodeId(2)))));
        check("1 3 4", &[1, 2, 3], Some((&[1, 3, 4], Why::Left(NodeId(2)))));
        check("2", &[1], Some((&[2], Why::Left(NodeId(1)))));
        check("1 2 3 5", &[1, 2, 3, 4, 5], Some((&[1, 2, 3], Why::Left(NodeId(4)))));
    }

    #[test]
    fn a_change_that_could_not_commit_is_not_asked_for() {
        check("1x 2x 3", &[1, 2, 3], None);
        check("2x", &[1], None);
    }

    #[test]
    fn decisions_settle() {
        let mut voters = BTreeSet::from([NodeId(1)]);
        let members = members("1 2 3w 4x 5 6 7z 8");
        let mut steps = 0;
        while let Some(change) = decide(&members, &voters, NOW) {
            voters = change.voters;
            steps += 1;
            assert!(steps < 10, "no end: {voters:?}");
        }
        assert_eq!(voters.len(), 5);
        assert_eq!(losses_survivable(&members, &voters), Some(2));
    }

    #[test]
    fn the_explanation_says_why_a_sixth_node_adds_nothing() {
        let voters: BTreeSet<NodeId> = (1..=5).map(NodeId).collect();
        let text = explain(&members("1 2 3 4 5 6"), &voters);
        assert!(text.starts_with("survives the loss of 2 nodes: 5 of 5 voters are alive"));
        assert!(text.contains("five voters are the limit, because"));
        let text = explain(&members("1 2x 3x"), &(1..=3).map(NodeId).collect());
        assert!(text.starts_with("no majority: 1 of 3"), "{text}");
    }
}
