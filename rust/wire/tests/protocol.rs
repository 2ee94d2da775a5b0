//! Goal: the server's side keeps to rpc.capnp where stock clients seldom go. Method: both state
//! machines talk to each other, frame by frame; frames that no client of ours sends are built
//! here.

use hybridps_wire::{
    decode_rows, Ask, ClientConnection, Dtype, Event, ExceptionKind, Message, Outcome,
    ServerConnection, StreamedReply, QUESTIONS_MAX,
};

mod stream;
use stream::frames;

/// Gives all frames to the server; the events that came of them.
fn say(server: &mut ServerConnection, words: &[u64]) -> Vec<Event> {
    let receive = |mut frame: Vec<u64>| server.receive(&mut frame);
    frames(words).into_iter().filter_map(receive).collect()
}

/// A server and a client that are logged in; hello was said and waits for its answer.
fn connected() -> (ServerConnection, ClientConnection, u32) {
    let (mut server, mut client) = (ServerConnection::new(), ClientConnection::new());
    let (hello, words) = client.start(1, "", "", None);
    let flight = frames(&words);
    assert!(say(&mut server, &flight[0]).is_empty());
    let login = say(&mut server, &flight[1]);
    let [Event::Login { question, .. }] = login[..] else { panic!("a login: {login:?}") };
    assert!(server.is_waiting());
    server.accept(question);
    assert_eq!(say(&mut server, &flight[2]), [Event::Call { question: hello, verb: 3 }]);
    for mut frame in frames(&server.outgoing()) {
        assert_eq!(client.receive(&mut frame), None);
    }
    (server, client, hello)
}

/// A message of one kind with a body of one data word, as Finish, Release and Bootstrap are.
fn short(kind: u64, pointers: u64, data: u64) -> Vec<u64> {
    let body = 1 << 32 | pointers << 48;
    let mut frame = vec![(4 + pointers) << 32, 1 << 32 | 1 << 48, kind, body, data];
    frame.resize(5 + pointers as usize, 0);
    frame
}

const BOOTSTRAP: u64 = 8;
const FINISH: u64 = 4;
const RELEASE: u64 = 6;

#[test]
fn a_rejected_login_fails_all_that_was_sent_behind_it() {
    let (mut server, mut client) = (ServerConnection::new(), ClientConnection::new());
    let (hello, words) = client.start(1, "", "wrong", None);
    let flight = frames(&words);
    say(&mut server, &flight[0]);
    let login = say(&mut server, &flight[1]);
    let [Event::Login { question, ref token }] = login[..] else { panic!("a login") };
    assert_eq!(token, "wrong");
    server.reject(question, "AuthError: wrong token");
    assert!(say(&mut server, &flight[2]).is_empty());
    let mut answers = frames(&server.outgoing());
    let last = answers.iter_mut().filter_map(|frame| client.receive(frame)).next_back();
    let answer = last.expect("an answer to hello");
    let Outcome::Exception { kind: ExceptionKind::Failed, reason } = answer.outcome else {
        panic!("an exception")
    };
    assert_eq!(
        (answer.question, &*reason.class, &*reason.text),
        (hello, "AuthError", "wrong token")
    );
}

#[test]
fn results_of_one_and_of_many_segments_arrive_whole() {
    // Root: one data word and one pointer; the pointer leads to text "abc", here or far away.
    let one = vec![4 << 32, 1 << 32 | 1 << 48, 42, 1 | 2 << 32 | 4 << 35, 0x0063_6261];
    let far = 2 | 1 << 32;
    let many = vec![1 | 3 << 32, 2, 1 << 32 | 1 << 48, 42, far, 1 | 2 << 32 | 4 << 35, 0x0063_6261];
    // Root itself far away, in the second of two segments.
    let distant =
        vec![1 | 1 << 32, 4, far, 1 << 32 | 1 << 48, 42, 1 | 2 << 32 | 4 << 35, 0x63_6261];
    for results in [one, many, distant] {
        let (mut server, mut client, hello) = connected();
        let mut reply = server.returns(hello, &results).expect("results");
        let answer = client.receive(&mut reply).expect("an answer");
        assert_eq!(answer.outcome, Outcome::Results);
        let message = Message::new(&reply).expect("a message");
        let root = message.root().expect("a root");
        assert_eq!((root.u64(0), root.text(0)), (42, Ok("abc".to_owned())));
    }
}

#[test]
fn empty_results_and_no_results_arrive() {
    for root in [0, 0xffff_fffc] {
        let (mut server, mut client, hello) = connected();
        let mut reply = server.returns(hello, &[1 << 32, root]).expect("results");
        assert_eq!(client.receive(&mut reply).map(|a| a.outcome), Some(Outcome::Results));
        assert_eq!(Message::new(&reply).and_then(|m| m.root().map(|r| r.u64(0))), Ok(0));
    }
}

#[test]
fn finish_before_return_is_answered_in_short() {
    let (mut server, mut client, hello) = connected();
    client.forget(hello);
    assert!(say(&mut server, &client.pending()).is_empty());
    assert!(server.is_canceled(hello));
    let mut reply = server.returns(hello, &[1 << 32, 0]).expect("results");
    assert!(reply.len() < 10);
    assert_eq!(client.receive(&mut reply), None);
    assert_eq!((client.closed(), server.closing()), (None, None));
    // The id is free again.
    assert!(say(&mut server, &short(BOOTSTRAP, 1, u64::from(hello))).is_empty());
    assert_eq!(server.closing(), None);
}

#[test]
fn a_gate_that_was_released_cannot_be_called() {
    let mut server = ServerConnection::new();
    say(&mut server, &short(BOOTSTRAP, 1, 7));
    say(&mut server, &short(FINISH, 0, 7));
    // Finish gave the one reference back; so releasing it again is an error of the peer.
    say(&mut server, &short(RELEASE, 0, 1 << 32));
    assert_eq!(server.closing(), Some("Release of more references than were given"));
    assert!(!server.outgoing().is_empty());
}

#[test]
fn references_are_counted() {
    let mut server = ServerConnection::new();
    for question in 0..3 {
        say(&mut server, &short(BOOTSTRAP, 1, question));
        // Bit 32 set: the capabilities in the results are kept.
        say(&mut server, &short(FINISH, 0, question | 1 << 32));
    }
    say(&mut server, &short(RELEASE, 0, 2 << 32));
    assert_eq!(server.closing(), None);
    say(&mut server, &short(RELEASE, 0, 2 << 32));
    assert!(server.closing().is_some());
}

#[test]
fn ids_in_use_and_too_many_questions_end_the_connection() {
    let mut server = ServerConnection::new();
    say(&mut server, &short(BOOTSTRAP, 1, 7));
    say(&mut server, &short(BOOTSTRAP, 1, 7));
    assert_eq!(server.closing(), Some("question id is in use"));

    let mut server = ServerConnection::new();
    for question in 0..=QUESTIONS_MAX as u64 {
        assert_eq!(server.closing(), None);
        say(&mut server, &short(BOOTSTRAP, 1, question));
        server.outgoing();
    }
    assert_eq!(server.closing(), Some("too many questions without Finish"));
}

#[test]
fn what_is_not_understood_is_sent_back() {
    let mut server = ServerConnection::new();
    // Join, and a kind of the future.
    for kind in [12, 77] {
        let sent = short(kind, 1, 99);
        assert!(say(&mut server, &sent).is_empty());
        let echo = frames(&server.outgoing());
        let message = Message::new(&echo[0]).expect("a message");
        let root = message.root().expect("a root");
        let inner = root.structure(0).expect("the message that was sent");
        assert_eq!((root.u16(0), u64::from(inner.u16(0))), (0, kind));
        assert_eq!(inner.structure(0).map(|body| body.u32(0)), Ok(99));
    }
    assert_eq!(server.closing(), None);
}

#[test]
fn peers_that_answer_what_was_not_asked_are_sent_away() {
    let mut server = ServerConnection::new();
    say(&mut server, &short(3, 1, 5));
    assert_eq!(server.closing(), Some("Return for a question never asked"));
    let mut client = ClientConnection::new();
    assert_eq!(client.receive(&mut short(3, 1, 5)), None);
    assert!(client.closed().is_some_and(|reason| reason.contains("never asked")));
}

/// A streamed reply with word `i` of its arrays holding the number i.
fn streamed(reply: &StreamedReply, tail: &[u64]) -> Vec<u64> {
    let mut frame = reply.head.clone();
    for blob in &reply.blobs {
        assert_eq!(blob.start, frame.len());
        frame.extend((0..blob.bytes.div_ceil(8)).map(|i| (blob.start + i) as u64));
    }
    frame.extend(tail);
    frame
}

#[test]
fn a_streamed_reply_says_where_its_arrays_lie() {
    let (_, mut client, _) = connected();
    let (question, _) = client.ask(
        &Ask::Lookup { want_found: true, dtype: Dtype::Float32 },
        &[(1, vec![24]), (2, vec![0]), (3, vec![8])],
    );
    let reply = StreamedReply::new(question, &[(24, 3), (0, 0), (8, 1)]);
    let mut frame = streamed(&reply, &reply.tail);
    let answer = client.receive(&mut frame).expect("an answer");
    assert_eq!((answer.question, answer.outcome), (question, Outcome::Rows));
    let places = decode_rows(&frame).expect("rows");
    let rows = places.iter().map(|at| at.rows.clone());
    let places: Vec<_> = rows.chain(places.iter().map(|at| at.found.clone())).collect();
    for (place, blob) in places.iter().zip(&reply.blobs) {
        assert_eq!(place.len(), blob.bytes);
        assert!(blob.bytes == 0 || place.start == 8 * blob.start);
    }
    assert_eq!(places.len(), 6);
}

#[test]
fn a_streamed_reply_can_end_in_an_exception() {
    for length in [0, 1, 7, 8, 900, 1100, 5000] {
        let (_, mut client, _) = connected();
        let (question, _) =
            client.ask(&Ask::Lookup { want_found: false, dtype: Dtype::Float32 }, &[(1, vec![24])]);
        let reply = StreamedReply::new(question, &[(24, 0)]);
        let text = "é".repeat(length);
        let tail = reply.failed_tail(ExceptionKind::Failed, &format!("BadInputError: {text}"));
        assert_eq!(tail.len(), reply.tail.len());
        let answer = client.receive(&mut streamed(&reply, &tail)).expect("an answer");
        let Outcome::Exception { kind, reason } = answer.outcome else { panic!("no exception") };
        assert_eq!((kind, &reason.class[..]), (ExceptionKind::Failed, "BadInputError"));
        assert!(text.starts_with(&reason.text));
        assert!(reason.text.len() == text.len() || reason.text.len() > 1000);
    }
}

#[test]
fn a_probe_is_answered_at_once_and_costs_nothing_that_stays() {
    let (mut server, mut client, hello) = connected();
    for _ in 0..3 * QUESTIONS_MAX {
        // The call of hello waits all the while.
        assert!(say(&mut server, &client.probe()).is_empty());
        let mut answers = frames(&server.outgoing());
        assert_eq!(answers.len(), 1);
        assert_eq!(client.receive(&mut answers[0]), None);
        // The Finish goes with whatever is sent next.
        assert!(say(&mut server, &client.pending()).is_empty());
        assert_eq!((server.closing(), client.closed(), client.in_flight()), (None, None, 1));
    }
    let mut reply = server.fails(hello, ExceptionKind::Failed, "late");
    assert_eq!(client.receive(&mut reply).map(|answer| answer.question), Some(hello));
}
