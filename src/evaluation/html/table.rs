//! Tables: with a caption and scopes, each in a container of its own that scrolls where the page is narrow.

use std::fmt::Write as _;

use super::text::{clean, escape, shorten};

/// A cell; its content is HTML.
#[derive(Debug, Clone)]
pub(super) struct Cell {
    tag: &'static str,
    attributes: String,
    html: String,
}

impl Cell {
    fn new(tag: &'static str, attributes: &str, html: impl Into<String>) -> Cell {
        Cell { tag, attributes: attributes.to_owned(), html: html.into() }
    }

    /// The header of a column.
    pub(super) fn column(html: impl Into<String>) -> Cell {
        Cell::new("th", " scope=\"col\"", html)
    }

    /// The header of a column of texts, which begin at the left.
    pub(super) fn words(html: impl Into<String>) -> Cell {
        Cell::new("th", " class=\"text\" scope=\"col\"", html)
    }

    /// The header of a column, over both rows of a head that has two.
    pub(super) fn tall(html: impl Into<String>) -> Cell {
        Cell::new("th", " scope=\"col\" rowspan=\"2\"", html)
    }

    /// The header of `count` columns.
    pub(super) fn columns(count: usize, html: impl Into<String>) -> Cell {
        Cell::new("th", &format!(" scope=\"colgroup\" colspan=\"{count}\""), html)
    }

    /// The header of a row.
    pub(super) fn row(html: impl Into<String>) -> Cell {
        Cell::new("th", " scope=\"row\"", html)
    }

    /// The header of a row: a class with its id. What is longer than `room` is cut, and whole when pointed at.
    pub(super) fn class(id: Option<usize>, label: &str, room: usize) -> Cell {
        let id = id.map_or_else(String::new, |id| format!("<span class=\"id\">{id}</span> "));
        Cell::row(format!("<div class=\"named\">{id}{}</div>", name(label, room)))
    }

    /// A number, or several.
    pub(super) fn number(html: impl Into<String>) -> Cell {
        Cell::new("td", "", html)
    }

    pub(super) fn text(html: impl Into<String>) -> Cell {
        Cell::new("td", " class=\"text\"", html)
    }

    /// The same cell, of a class in style.css.
    pub(super) fn of(mut self, class: &str) -> Cell {
        self.attributes.push_str(&format!(" class=\"{class}\""));
        self
    }

    /// A cell of a class in style.css.
    pub(super) fn of_class(class: &str, html: impl Into<String>) -> Cell {
        Cell::new("td", &format!(" class=\"{class}\""), html)
    }
}

/// Tables of so many rows are printed on one page.
const SHORT: usize = 12;
/// How many letters of a name a table shows.
pub(super) const ROOM: usize = 120;

/// A text cut to `room`, and whole when pointed at.
pub(super) fn name(text: &str, room: usize) -> String {
    let short = shorten(text, room);
    if short == clean(text) {
        return format!("<span>{}</span>", escape(text));
    }
    format!("<span title=\"{}\">{}</span>", escape(text), escape(&short))
}

/// A table; `caption` is HTML, `id` must be the page's only one of its kind.
#[derive(Debug, Clone)]
pub(super) struct Table {
    id: String,
    class: &'static str,
    caption: String,
    /// How many columns belong together, where the head groups them.
    pub(super) groups: Vec<usize>,
    pub(super) head: Vec<Vec<Cell>>,
    pub(super) body: Vec<Vec<Cell>>,
}

impl Table {
    pub(super) fn new(id: &str, class: &'static str, caption: impl Into<String>) -> Table {
        let (id, caption) = (id.to_owned(), caption.into());
        Table { id, class, caption, groups: Vec::new(), head: Vec::new(), body: Vec::new() }
    }

    pub(super) fn html(&self) -> String {
        let Table { id, class, caption, .. } = self;
        let short = if self.body.len() <= SHORT { " short" } else { "" };
        // who has no pointer scrolls with the keys once the container has the focus
        let mut out = format!(
            "<div class=\"scroll{short}\" role=\"group\" aria-labelledby=\"{id}\" tabindex=\"0\">\n<table class=\"{class}\">\n\
             <caption id=\"{id}\"><span>{caption}</span></caption>\n"
        );
        for count in &self.groups {
            let _ = writeln!(out, "<colgroup span=\"{count}\"></colgroup>");
        }
        for (part, rows) in [("thead", &self.head), ("tbody", &self.body)] {
            let _ = writeln!(out, "<{part}>");
            for row in rows {
                out.push_str("<tr>");
                for Cell { tag, attributes, html } in row {
                    let _ = write!(out, "<{tag}{attributes}>{html}</{tag}>");
                }
                out.push_str("</tr>\n");
            }
            let _ = writeln!(out, "</{part}>");
        }
        out.push_str("</table>\n</div>\n");
        out
    }
}
