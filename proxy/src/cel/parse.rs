//! From tokens to a tree, with attributes and functions resolved.

use super::attribute::{Attribute, ROOTS};
use super::lex::{Token, tokens};
use super::node::{Function, Literal, Macro, Node, Operator};
use super::{MAX_NESTING, MAX_NODES};
use crate::config::Regex;

pub(super) fn parse(source: &str) -> Result<Node, String> {
    let tokens = tokens(source)?;
    let mut parser =
        Parser { tokens: tokens.into_iter().peekable(), end: source.len(), nesting: 0, nodes: 0, variables: Vec::new() };
    let root = parser.expression()?;
    match parser.tokens.next() {
        None => Ok(root),
        Some((token, at)) => Err(format!("{token:?} at byte {at} is one too many")),
    }
}

struct Parser {
    tokens: std::iter::Peekable<std::vec::IntoIter<(Token, usize)>>,
    end: usize,
    nesting: usize,
    nodes: usize,
    /// Of the macros around.
    variables: Vec<String>,
}

/// A variable that has no value of its own, until a member of it is named.
enum Part {
    Root(&'static str),
    Node(Node),
}

type Parsed = Result<Node, String>;

impl Parser {
    fn take(&mut self, sign: &str) -> bool {
        self.tokens.next_if(|(token, _)| matches!(token, Token::Sign(found) if *found == sign)).is_some()
    }

    fn take_any(&mut self, signs: &[(&str, Operator)]) -> Option<Operator> {
        signs.iter().find(|(sign, _)| self.take(sign)).map(|(_, operator)| *operator)
    }

    fn expect(&mut self, sign: &str) -> Result<(), String> {
        if self.take(sign) { Ok(()) } else { Err(format!("expected {sign} at byte {}", self.position())) }
    }

    fn position(&mut self) -> usize {
        self.tokens.peek().map_or(self.end, |(_, at)| *at)
    }

    fn node(&mut self, node: Node) -> Parsed {
        self.nodes += 1;
        if self.nodes > MAX_NODES { Err(format!("expected at most {MAX_NODES} operators and operands")) } else { Ok(node) }
    }

    fn expression(&mut self) -> Parsed {
        self.nesting += 1;
        if self.nesting > MAX_NESTING {
            return Err(format!("expected at most {MAX_NESTING} levels of nesting"));
        }
        let mut node = self.disjunction()?;
        if self.take("?") {
            let yes = self.disjunction()?;
            self.expect(":")?;
            let no = self.expression()?;
            node = self.node(Node::Choice(Box::new([node, yes, no])))?;
        }
        self.nesting -= 1;
        Ok(node)
    }

    fn disjunction(&mut self) -> Parsed {
        let mut all = vec![self.conjunction()?];
        while self.take("||") {
            all.push(self.conjunction()?);
        }
        self.one_or(all, Node::Any)
    }

    fn conjunction(&mut self) -> Parsed {
        let mut all = vec![self.relation()?];
        while self.take("&&") {
            all.push(self.relation()?);
        }
        self.one_or(all, Node::All)
    }

    fn one_or(&mut self, mut all: Vec<Node>, many: fn(Vec<Node>) -> Node) -> Parsed {
        match all.pop() {
            Some(only) if all.is_empty() => Ok(only),
            last => {
                all.extend(last);
                self.node(many(all))
            }
        }
    }

    fn relation(&mut self) -> Parsed {
        let mut left = self.sum()?;
        loop {
            let relation = self.take_any(&[
                ("==", Operator::Equal),
                ("!=", Operator::NotEqual),
                ("<=", Operator::LessOrEqual),
                (">=", Operator::GreaterOrEqual),
                ("<", Operator::Less),
                (">", Operator::Greater),
            ]);
            let is_in = |(token, _): &(Token, usize)| matches!(token, Token::Name(name) if name == "in");
            let relation = relation.or_else(|| self.tokens.next_if(is_in).map(|_| Operator::In));
            let Some(relation) = relation else { return Ok(left) };
            let right = self.sum()?;
            left = self.node(Node::Binary(relation, Box::new(left), Box::new(right)))?;
        }
    }

    fn sum(&mut self) -> Parsed {
        let mut left = self.product()?;
        while let Some(operator) = self.take_any(&[("+", Operator::Add), ("-", Operator::Subtract)]) {
            let right = self.product()?;
            left = self.node(Node::Binary(operator, Box::new(left), Box::new(right)))?;
        }
        Ok(left)
    }

    fn product(&mut self) -> Parsed {
        let mut left = self.unary()?;
        let signs = [("*", Operator::Multiply), ("/", Operator::Divide), ("%", Operator::Remainder)];
        while let Some(operator) = self.take_any(&signs) {
            let right = self.unary()?;
            left = self.node(Node::Binary(operator, Box::new(left), Box::new(right)))?;
        }
        Ok(left)
    }

    fn unary(&mut self) -> Parsed {
        let (mut nots, mut minuses) = (0, 0);
        while self.take("!") {
            nots += 1;
        }
        while nots == 0 && self.take("-") {
            minuses += 1;
        }
        let mut node = self.member()?;
        for _ in 0..nots {
            node = self.node(Node::Not(Box::new(node)))?;
        }
        for _ in 0..minuses {
            node = self.node(Node::Negative(Box::new(node)))?;
        }
        Ok(node)
    }

    fn member(&mut self) -> Parsed {
        let mut part = self.primary()?;
        loop {
            if self.take(".") {
                let name = self.name()?;
                part = if self.take("(") { self.method(part, &name)? } else { self.select(part, name)? };
            } else if self.take("[") {
                let key = self.expression()?;
                self.expect("]")?;
                part = match (part, key) {
                    (Part::Root(root), Node::Literal(Literal::Text(name))) => self.select(Part::Root(root), name)?,
                    (part, key) => {
                        let whole = whole(part)?;
                        Part::Node(self.node(Node::Entry(Box::new(whole), Box::new(key)))?)
                    }
                };
            } else {
                return whole(part);
            }
        }
    }

    fn name(&mut self) -> Result<String, String> {
        match self.tokens.next() {
            Some((Token::Name(name), _)) => Ok(name),
            Some((token, at)) => Err(format!("expected a name at byte {at}, found {token:?}")),
            None => Err("expected a name at the end".to_owned()),
        }
    }

    fn select(&mut self, of: Part, name: String) -> Result<Part, String> {
        match of {
            Part::Root(root) => {
                let attribute = Attribute::member(root, &name).ok_or_else(|| format!("{root}.{name} is no attribute"))?;
                self.node(Node::Attribute(attribute)).map(Part::Node)
            }
            Part::Node(node) => {
                let key = Box::new(Node::Literal(Literal::Text(name)));
                self.node(Node::Entry(Box::new(node), key)).map(Part::Node)
            }
        }
    }

    fn primary(&mut self) -> Result<Part, String> {
        let Some((token, at)) = self.tokens.next() else { return Err("expected a value at the end".to_owned()) };
        let literal = match token {
            Token::Int(value) => Literal::Int(value),
            Token::Uint(value) => Literal::Uint(value),
            Token::Double(value) => Literal::Double(value),
            Token::Text(value) => Literal::Text(value),
            Token::Name(name) => match name.as_str() {
                "true" => Literal::Bool(true),
                "false" => Literal::Bool(false),
                "null" => Literal::Null,
                _ => return self.named(&name, at),
            },
            Token::Sign("(") => {
                let node = self.expression()?;
                self.expect(")")?;
                return Ok(Part::Node(node));
            }
            Token::Sign("[") => {
                let items = self.list("]")?;
                return self.node(Node::List(items)).map(Part::Node);
            }
            Token::Sign("{") => return self.map().map(Part::Node),
            Token::Sign(sign) => return Err(format!("expected a value at byte {at}, found {sign}")),
        };
        self.node(Node::Literal(literal)).map(Part::Node)
    }

    fn named(&mut self, name: &str, at: usize) -> Result<Part, String> {
        if self.take("(") {
            return self.call(name, at).map(Part::Node);
        }
        if let Some(depth) = self.variables.iter().rposition(|variable| variable == name) {
            return self.node(Node::Variable(depth)).map(Part::Node);
        }
        if let Some(attribute) = Attribute::root(name) {
            return self.node(Node::Attribute(attribute)).map(Part::Node);
        }
        let root = ROOTS.iter().find(|root| **root == name);
        root.map(|root| Part::Root(root)).ok_or_else(|| format!("{name} at byte {at} is no attribute"))
    }

    /// Expressions with commas between them, up to `end`, which is taken.
    fn list(&mut self, end: &str) -> Result<Vec<Node>, String> {
        let mut items = Vec::new();
        loop {
            if self.take(end) {
                return Ok(items);
            }
            items.push(self.expression()?);
            if !self.take(",") {
                self.expect(end)?;
                return Ok(items);
            }
        }
    }

    fn map(&mut self) -> Parsed {
        let mut entries = Vec::new();
        loop {
            if self.take("}") {
                return self.node(Node::Map(entries));
            }
            let key = self.expression()?;
            self.expect(":")?;
            entries.push((key, self.expression()?));
            if !self.take(",") {
                self.expect("}")?;
                return self.node(Node::Map(entries));
            }
        }
    }

    fn call(&mut self, name: &str, at: usize) -> Parsed {
        let arguments = self.list(")")?;
        if name == "has" {
            return self.has(arguments, at);
        }
        let function = match name {
            "size" => Function::Size,
            "int" => Function::Int,
            "uint" => Function::Uint,
            "double" => Function::Double,
            "string" => Function::String,
            "duration" => Function::Duration,
            "timestamp" => Function::Timestamp,
            _ => return Err(format!("{name}() at byte {at} is not supported")),
        };
        if arguments.len() != 1 {
            return Err(format!("{name}() at byte {at} takes one argument"));
        }
        self.node(Node::Call(function, arguments))
    }

    fn has(&mut self, mut arguments: Vec<Node>, at: usize) -> Parsed {
        match (arguments.pop(), arguments.is_empty()) {
            (Some(Node::Attribute(attribute)), true) => self.node(Node::Has(Box::new(Node::Attribute(attribute)), None)),
            (Some(Node::Entry(of, key)), true) => match *key {
                Node::Literal(Literal::Text(name)) => self.node(Node::Has(of, Some(name))),
                _ => Err(format!("has() at byte {at} takes a member, as in has(a.b)")),
            },
            _ => Err(format!("has() at byte {at} takes a member, as in has(a.b)")),
        }
    }

    /// `of.name(`: a macro, or a function whose first argument stands before it.
    fn method(&mut self, of: Part, name: &str) -> Result<Part, String> {
        let of = whole(of)?;
        let kind = match name {
            "all" => Some(Macro::All),
            "exists" => Some(Macro::Exists),
            "exists_one" | "existsOne" => Some(Macro::ExistsOne),
            "map" => Some(Macro::Map),
            "filter" => Some(Macro::Filter),
            _ => None,
        };
        if let Some(kind) = kind {
            let variable = self.name()?;
            self.expect(",")?;
            self.variables.push(variable);
            let asked = self.list(")")?;
            self.variables.pop();
            let wanted = if kind == Macro::Map { 1..=2 } else { 1..=1 };
            if !wanted.contains(&asked.len()) {
                return Err(format!("{name}() takes a variable and an expression"));
            }
            return self.node(Node::Macro(kind, Box::new(of), asked)).map(Part::Node);
        }
        let mut arguments = vec![of];
        arguments.extend(self.list(")")?);
        self.function(name, arguments).map(Part::Node)
    }

    fn function(&mut self, name: &str, mut arguments: Vec<Node>) -> Parsed {
        let (function, wanted) = match name {
            "size" => (Function::Size, 1),
            "startsWith" => (Function::StartsWith, 2),
            "endsWith" => (Function::EndsWith, 2),
            "contains" => (Function::Contains, 2),
            "matches" => {
                let (Some(Node::Literal(Literal::Text(pattern))), Some(of), None) =
                    (arguments.pop(), arguments.pop(), arguments.pop())
                else {
                    return Err("matches() takes a pattern that is written out".to_owned());
                };
                let pattern = Regex::new(&pattern).map_err(|error| format!("matches(): {error}"))?;
                return self.node(Node::Matches(Box::new(of), pattern));
            }
            _ => return Err(format!("{name}() is not supported")),
        };
        if arguments.len() != wanted {
            return Err(format!("{name}() takes {} arguments", wanted - 1));
        }
        self.node(Node::Call(function, arguments))
    }
}

fn whole(part: Part) -> Parsed {
    match part {
        Part::Node(node) => Ok(node),
        Part::Root(root) => Err(format!("{root} has no value of its own, expected {root}.<name>")),
    }
}
