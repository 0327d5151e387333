//! From a query's bytes to the answer's.
//!
//! What is not of the mesh goes upstream as it came, and comes back as it was answered, as RFC 5625 wants it of proxies: new types,
//! flags and options need nothing from us. Only the ID is another one, and an answer that is too long for whoever asked is cut.

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{DNSClass, RecordType};

use super::{Found, Zone};

/// The longest query that is read: a name has 255 bytes, options rarely more.
pub const MAX_QUERY: usize = 2048;
const HEADER: usize = 12;
/// What everybody takes over UDP (RFC 1035, section 4.2.1), and what no path has to fragment (the DNS flag day of 2020).
const PLAIN: usize = 512;
const EXTENDED: u16 = 1232;
/// What is taken of an answer over UDP. Nobody asks for more, but a few say that they would take all there is.
const LARGEST: usize = 4096;
/// In the third byte of a message.
const ANSWER: u8 = 0x80;
const TRUNCATED: u8 = 0x02;
const RECURSION_DESIRED: u8 = 0x01;
/// In the fourth.
const RECURSION_AVAILABLE: u8 = 0x80;
const CODE: u8 = 0x0f;
/// A query has OPT at most (RFC 6891), and a signature (RFC 8945).
const MAX_ADDITIONAL: u16 = 2;

/// By what a query came.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Transport {
    Udp,
    Tcp,
}

/// What is to be done about a query.
#[derive(Debug)]
pub enum Verdict {
    /// Nothing: it is none.
    Ignore,
    /// Send this.
    Reply(Vec<u8>),
    /// Ask upstream.
    Forward(Box<Forward>),
}

/// A query about a name that is not of the mesh.
#[derive(Debug, Clone)]
pub struct Forward {
    query: Vec<u8>,
    /// Where its question ends.
    question: usize,
    /// How long the answer may be, in bytes.
    limit: usize,
    failure: Message,
}

/// Reads a query. Never panics, whatever the bytes are, and holds no more memory for them than they are long.
pub fn read(zone: &Zone, bytes: &[u8], transport: Transport) -> Verdict {
    let Some(header) = bytes.first_chunk::<HEADER>() else { return Verdict::Ignore };
    // To answer an answer is how two servers keep each other busy for ever.
    if header[2] & ANSWER != 0 {
        return Verdict::Ignore;
    }
    if header[2] & 0x78 != 0 {
        return Verdict::Reply(bare(header, ResponseCode::NotImp));
    }
    let count = |at: usize| u16::from_be_bytes([header[at], header[at + 1]]);
    // Looked at before anything is set aside for so many records.
    let sound = count(4) == 1 && count(6) == 0 && count(8) == 0 && count(10) <= MAX_ADDITIONAL;
    let question = question_end(bytes).filter(|_| sound && bytes.len() <= MAX_QUERY);
    let (Some(question), Ok(query)) = (question, Message::from_vec(bytes)) else {
        return Verdict::Reply(bare(header, ResponseCode::FormErr));
    };
    let Some(asked) = query.queries.first() else { return Verdict::Ignore };
    let limit = match transport {
        Transport::Udp => usize::from(query.max_payload()).min(LARGEST),
        Transport::Tcp => usize::from(u16::MAX),
    };
    let refuse = |code| encoded(&reply(&query, code), limit);
    if query.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
        return refuse(ResponseCode::BADVERS);
    }
    let transfer = matches!(asked.query_type(), RecordType::AXFR | RecordType::IXFR);
    if asked.query_class() != DNSClass::IN || transfer {
        return refuse(ResponseCode::Refused);
    }
    match zone.look_up(asked.name(), asked.query_type()) {
        Found::Elsewhere => {
            let failure = reply(&query, ResponseCode::ServFail);
            Verdict::Forward(Box::new(Forward { query: bytes.to_vec(), question, limit, failure }))
        }
        Found::Records(records) => {
            let mut message = reply(&query, ResponseCode::NoError);
            message.metadata.authoritative = true;
            message.add_answers(records);
            encoded(&message, limit.min(longest(transport)))
        }
        Found::Nothing { exists, soa } => {
            let mut message = reply(&query, if exists { ResponseCode::NoError } else { ResponseCode::NXDomain });
            message.metadata.authoritative = true;
            message.add_authority(*soa);
            encoded(&message, limit.min(longest(transport)))
        }
    }
}

impl Forward {
    /// That of the query as it came.
    pub fn id(&self) -> u16 {
        u16::from_be_bytes([self.query[0], self.query[1]])
    }

    /// The same for all queries that have the same answer.
    pub fn key(&self) -> &[u8] {
        &self.query[2..]
    }

    /// How long an answer is of use, in bytes.
    pub fn limit(&self) -> usize {
        self.limit
    }

    /// The query under another ID.
    pub fn query(&self, id: u16) -> Vec<u8> {
        let mut query = self.query.clone();
        query[..2].copy_from_slice(&id.to_be_bytes());
        query
    }

    /// Whether this is an answer to the query under that ID. Everything else that arrives is not looked at further (RFC 5452,
    /// section 9.1).
    pub fn is_answered_by(&self, id: u16, answer: &[u8]) -> bool {
        answer.len() >= self.question
            && answer[..2] == id.to_be_bytes()
            && answer[2] & ANSWER != 0
            && answer[4..6] == [0, 1]
            && answer[HEADER..self.question] == self.query[HEADER..self.question]
    }

    /// An answer as it goes to whoever asked. `answer` is one by [`Forward::is_answered_by`].
    pub fn reply(&self, answer: &[u8]) -> Vec<u8> {
        let mut reply = answer.to_vec();
        if answer.len() > self.limit {
            reply.truncate(self.question);
            reply[2] |= TRUNCATED;
            reply[6..HEADER].fill(0);
        }
        reply[..2].copy_from_slice(&self.query[..2]);
        reply
    }

    fn failure(&self, code: ResponseCode) -> Vec<u8> {
        let mut message = self.failure.clone();
        message.metadata.response_code = code;
        message.to_vec().unwrap_or_default()
    }

    /// No server could be asked.
    pub fn failed(&self) -> Vec<u8> {
        self.failure(ResponseCode::ServFail)
    }

    /// There is no server to ask.
    pub fn refused(&self) -> Vec<u8> {
        self.failure(ResponseCode::Refused)
    }

    /// Whether another server may know more than the one that answered so.
    pub fn is_worth_another_try(answer: &[u8]) -> bool {
        let code = answer.get(3).map_or(0, |byte| byte & CODE);
        [ResponseCode::ServFail, ResponseCode::NotImp, ResponseCode::Refused].iter().any(|bad| bad.low() == code)
    }
}

/// The end of the only question: labels, type and class. A pointer would lead back to it.
fn question_end(bytes: &[u8]) -> Option<usize> {
    let mut at = HEADER;
    loop {
        match *bytes.get(at)? {
            0 => break,
            len @ 1..=63 => at += 1 + usize::from(len),
            _ => return None,
        }
    }
    let end = at + 5;
    (end <= bytes.len()).then_some(end)
}

/// An answer to what cannot be read: the header alone.
fn bare(header: &[u8; HEADER], code: ResponseCode) -> Vec<u8> {
    let mut reply = header.to_vec();
    reply[2] = ANSWER | (header[2] & (0x78 | RECURSION_DESIRED));
    reply[3] = RECURSION_AVAILABLE | code.low();
    reply[4..].fill(0);
    reply
}

fn reply(query: &Message, code: ResponseCode) -> Message {
    let mut message = Message::new(query.metadata.id, MessageType::Response, OpCode::Query);
    message.metadata.recursion_desired = query.metadata.recursion_desired;
    message.metadata.checking_disabled = query.metadata.checking_disabled;
    message.metadata.recursion_available = true;
    message.metadata.response_code = code;
    message.add_queries(query.queries.iter().cloned());
    if query.edns.is_some() {
        let mut edns = Edns::new();
        edns.set_max_payload(EXTENDED);
        message.set_edns(edns);
    }
    message
}

fn longest(transport: Transport) -> usize {
    if transport == Transport::Udp { EXTENDED.into() } else { usize::from(u16::MAX) }
}

fn encoded(message: &Message, limit: usize) -> Verdict {
    let bytes = match message.to_vec() {
        Ok(bytes) if bytes.len() <= limit.max(PLAIN) => Ok(bytes),
        Ok(_) => message.truncate().to_vec(),
        error => error,
    };
    bytes.map_or(Verdict::Ignore, Verdict::Reply)
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Query;
    use hickory_proto::rr::Name;
    use proptest::prelude::*;

    use super::super::tests::{attached, config};
    use super::super::{Heard, Zone};
    use super::*;

    fn zone() -> Zone {
        Zone::new(&config(), &[attached("nextcloud", &["10.89.2.10", "fd89:2::10"])], &Heard::default(), 1)
    }

    fn query(name: &str, kind: RecordType) -> Message {
        let mut message = Message::new(0x1234, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message
    }

    #[track_caller]
    fn answer(bytes: &[u8]) -> Message {
        match read(&zone(), bytes, Transport::Udp) {
            Verdict::Reply(bytes) => Message::from_vec(&bytes).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn forward(message: &Message) -> Forward {
        match read(&zone(), &message.to_vec().unwrap(), Transport::Udp) {
            Verdict::Forward(forward) => *forward,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_mesh_is_answered_with_authority() {
        let asked = query("NextCloud.home.mesh.", RecordType::A);
        let reply = answer(&asked.to_vec().unwrap());
        assert_eq!((reply.metadata.id, reply.metadata.response_code), (0x1234, ResponseCode::NoError));
        assert!(reply.metadata.authoritative && reply.metadata.recursion_desired && reply.metadata.recursion_available);
        assert_eq!(reply.queries, asked.queries);
        assert_eq!(reply.answers.len(), 1);
        assert!(reply.edns.is_none(), "nobody asked for it");
    }

    #[test]
    fn what_is_not_there_says_for_how_long() {
        for (name, kind, code) in [
            ("nobody.home.mesh.", RecordType::A, ResponseCode::NXDomain),
            ("home.mesh.", RecordType::TXT, ResponseCode::NoError),
        ] {
            let reply = answer(&query(name, kind).to_vec().unwrap());
            assert_eq!((reply.metadata.response_code, reply.answers.len()), (code, 0), "{name}");
            assert_eq!(reply.authorities[0].record_type(), RecordType::SOA);
        }
    }

    #[test]
    fn options_are_answered_in_the_first_version() {
        let mut asked = query("home.mesh.", RecordType::A);
        asked.set_edns(Edns::new());
        let reply = answer(&asked.to_vec().unwrap());
        assert_eq!(reply.edns.map(|edns| edns.max_payload()), Some(EXTENDED));
        let mut edns = Edns::new();
        edns.set_version(1);
        asked.set_edns(edns);
        // 16, which is BADSIG in a signature.
        let code = answer(&asked.to_vec().unwrap()).metadata.response_code;
        assert_eq!(u16::from(code), u16::from(ResponseCode::BADVERS));
    }

    #[test]
    fn what_is_no_sound_query_costs_nothing() {
        let sound = query("home.mesh.", RecordType::A).to_vec().unwrap();
        let code = |bytes: &[u8]| answer(bytes).metadata.response_code;
        let with = |at: usize, byte: u8| {
            let mut bytes = sound.clone();
            bytes[at] = byte;
            bytes
        };
        for (why, bytes, expected) in [
            ("no question", with(5, 0), ResponseCode::FormErr),
            ("two questions", with(5, 2), ResponseCode::FormErr),
            ("a million answers", with(6, 0xff), ResponseCode::FormErr),
            ("a million options", with(10, 0xff), ResponseCode::FormErr),
            ("a pointer", with(12, 0xc0), ResponseCode::FormErr),
            ("an update", with(2, 5 << 3), ResponseCode::NotImp),
            ("cut", sound[..20].to_vec(), ResponseCode::FormErr),
            ("another class", with(sound.len() - 1, 3), ResponseCode::Refused),
            ("a transfer", with(sound.len() - 3, 252), ResponseCode::Refused),
        ] {
            assert_eq!(code(&bytes), expected, "{why}");
        }
        for bytes in [&with(2, ANSWER)[..], &sound[..11], &[]] {
            assert!(matches!(read(&zone(), bytes, Transport::Udp), Verdict::Ignore), "an answer, or nothing");
        }
        assert_eq!(code(&vec![0; MAX_QUERY + 1]), ResponseCode::FormErr);
    }

    #[test]
    fn others_are_asked_under_another_id_and_only_the_answer_to_that_counts() {
        let asked = query("www.example.net.", RecordType::AAAA);
        let forward = forward(&asked);
        let upstream = forward.query(77);
        assert_eq!((forward.id(), &upstream[2..]), (0x1234, forward.key()));
        let mut reply = Message::from_vec(&upstream).unwrap().into_response();
        let good = reply.to_vec().unwrap();
        assert!(forward.is_answered_by(77, &good));
        assert!(!forward.is_answered_by(78, &good), "another ID");
        assert!(!forward.is_answered_by(77, &upstream), "the query itself");
        assert!(!forward.is_answered_by(77, &good[..12]), "no question");
        reply.queries[0].set_query_type(RecordType::A);
        assert!(!forward.is_answered_by(77, &reply.to_vec().unwrap()), "another question");
        assert_eq!(forward.reply(&good)[..2], [0x12, 0x34]);
        let failed = Message::from_vec(&forward.failed()).unwrap();
        assert_eq!((failed.metadata.id, failed.metadata.response_code), (0x1234, ResponseCode::ServFail));
    }

    #[test]
    fn an_answer_that_is_too_long_is_cut() {
        let forward = forward(&query("www.example.net.", RecordType::TXT));
        let mut long = Message::from_vec(&forward.query(1)).unwrap().into_response().to_vec().unwrap();
        long.resize(600, 0);
        long[7] = 1;
        let cut = Message::from_vec(&forward.reply(&long)).unwrap();
        assert!(cut.metadata.truncation && cut.answers.is_empty() && cut.queries.len() == 1);
        assert_eq!(forward.limit(), 512);
    }

    proptest! {
        #[test]
        fn garbage_does_not_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..600), fix: bool, answer in prop::collection::vec(any::<u8>(), 0..600)) {
            if fix && bytes.len() > 12 {
                bytes[2] = 1;
                bytes[4..12].copy_from_slice(&[0, 1, 0, 0, 0, 0, 0, 1]);
            }
            if let Verdict::Forward(forward) = read(&zone(), &bytes, Transport::Udp)
                && forward.is_answered_by(1, &answer)
            {
                let _ = forward.reply(&answer);
            }
        }

        #[test]
        fn one_wrong_byte_does_not_panic(at: prop::sample::Index, byte: u8, tcp: bool) {
            let mut asked = query("nextcloud.home.mesh.", RecordType::A);
            asked.set_edns(Edns::new());
            let mut bytes = asked.to_vec().unwrap();
            let at = at.index(bytes.len());
            bytes[at] = byte;
            let _ = read(&zone(), &bytes, if tcp { Transport::Tcp } else { Transport::Udp });
        }
    }
}
