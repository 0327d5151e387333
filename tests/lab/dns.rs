//! Asking for names, and a name server of the internet.

use std::io::{self, Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use hickory_proto::op::{Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use nix::sys::socket::{Shutdown, shutdown};

use super::netns::Namespace;
use super::secs;

/// What the name server of the internet answers whoever asks for an address.
pub const ANSWER: &str = "192.0.2.7";

/// A query for a name and a type.
pub fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(rand_id(), MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).expect("a name"), kind));
    message
}

fn rand_id() -> u16 {
    u16::from_ne_bytes(meshd::key::random_bytes().expect("random numbers"))
}

/// Asks over UDP; `None` when nothing comes within the time.
pub fn ask_within(limit: Duration, from: &Namespace, server: &str, name: &str, kind: RecordType) -> Option<Message> {
    let asked = query(name, kind);
    let server: IpAddr = server.parse().expect("an address");
    let any = if server.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = from.within(|| UdpSocket::bind(any)).expect("bind");
    socket.set_read_timeout(Some(limit)).expect("a timeout");
    socket.connect((server, 53)).ok()?;
    socket.send(&asked.to_vec().expect("a query")).ok()?;
    let mut buffer = [0; 4096];
    let len = socket.recv(&mut buffer).ok()?;
    let answer = Message::from_vec(&buffer[..len]).expect("an answer");
    assert_eq!((answer.metadata.id, &answer.queries), (asked.metadata.id, &asked.queries));
    Some(answer)
}

/// The same, within six seconds.
pub fn ask(from: &Namespace, server: &str, name: &str, kind: RecordType) -> Option<Message> {
    ask_within(secs(6), from, server, name, kind)
}

/// The data of the answers; empty when there is none.
pub fn look_up(from: &Namespace, server: &str, name: &str, kind: RecordType) -> Vec<String> {
    let answer = ask(from, server, name, kind).unwrap_or_else(|| panic!("no answer about {name} from {server}"));
    answer.answers.iter().map(|record| record.data.to_string()).collect()
}

/// Asks over TCP.
pub fn ask_tcp(from: &Namespace, server: &str, name: &str, kind: RecordType) -> io::Result<Message> {
    let server = SocketAddr::new(server.parse().expect("an address"), 53);
    let mut stream = from.within(|| TcpStream::connect_timeout(&server, secs(2)))?;
    stream.set_read_timeout(Some(secs(6)))?;
    write_framed(&mut stream, &query(name, kind).to_vec().expect("a query"))?;
    Ok(Message::from_vec(&read_framed(&mut stream)?).expect("an answer"))
}

fn write_framed(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let len = u16::try_from(message.len()).expect("a short message");
    stream.write_all(&[&len.to_be_bytes(), message].concat())
}

fn read_framed(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut len = [0; 2];
    stream.read_exact(&mut len)?;
    let mut message = vec![0; u16::from_be_bytes(len).into()];
    stream.read_exact(&mut message)?;
    Ok(message)
}

/// Answers every question with [`ANSWER`]; about a name that begins with `big` there is so much that it takes TCP.
pub struct NameServer {
    udp: UdpSocket,
    tcp: TcpListener,
    heard: Arc<Mutex<Vec<(String, IpAddr)>>>,
    threads: Vec<JoinHandle<()>>,
}

impl NameServer {
    /// Starts on port 53 of one address.
    pub fn start(namespace: &Namespace, address: &str) -> Self {
        let address = SocketAddr::new(address.parse().expect("an address"), 53);
        let udp = namespace.within(|| UdpSocket::bind(address)).expect("bind");
        let tcp = namespace.within(|| TcpListener::bind(address)).expect("listen");
        let heard = Arc::new(Mutex::new(Vec::new()));
        let answer_udp = std::thread::spawn({
            let (udp, heard) = (udp.try_clone().expect("dup"), Arc::clone(&heard));
            move || {
                let mut buffer = [0; 2048];
                while let Ok((len, from)) = udp.recv_from(&mut buffer) {
                    let Ok(query) = Message::from_vec(&buffer[..len]) else { return };
                    let _ = udp.send_to(&answer(&heard, query, from, false), from);
                }
            }
        });
        let answer_tcp = std::thread::spawn({
            let (tcp, heard) = (tcp.try_clone().expect("dup"), Arc::clone(&heard));
            move || {
                while let Ok((mut stream, from)) = tcp.accept() {
                    let _ = stream.set_read_timeout(Some(secs(2)));
                    let Ok(query) = read_framed(&mut stream) else { continue };
                    let Ok(query) = Message::from_vec(&query) else { continue };
                    let _ = write_framed(&mut stream, &answer(&heard, query, from, true));
                }
            }
        });
        Self { udp, tcp, heard, threads: vec![answer_udp, answer_tcp] }
    }

    /// Who has asked about a name.
    pub fn askers(&self, name: &str) -> Vec<IpAddr> {
        let heard = self.heard.lock().expect("a lock");
        heard.iter().filter(|(asked, _)| asked == name).map(|(_, from)| *from).collect()
    }
}

fn answer(heard: &Mutex<Vec<(String, IpAddr)>>, query: Message, from: SocketAddr, tcp: bool) -> Vec<u8> {
    let asked = query.queries[0].clone();
    let name = asked.name().to_ascii();
    heard.lock().expect("a lock").push((name.clone(), from.ip()));
    let mut reply = query.into_response();
    reply.metadata.recursion_available = true;
    let big = name.starts_with("big");
    reply.metadata.truncation = big && !tcp;
    let count = if big && tcp { 200 } else { u8::from(!big) };
    for _ in 0..count {
        let data = RData::A(A(ANSWER.parse::<Ipv4Addr>().expect("an address")));
        reply.add_answer(Record::from_rdata(asked.name().clone(), 60, data));
    }
    reply.to_vec().expect("an answer")
}

impl Drop for NameServer {
    fn drop(&mut self) {
        // Wakes recvfrom(2) and accept(2), with nothing or an error.
        let _ = shutdown(self.udp.as_raw_fd(), Shutdown::Both);
        let _ = shutdown(self.tcp.as_raw_fd(), Shutdown::Both);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}
