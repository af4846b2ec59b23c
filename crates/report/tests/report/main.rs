//! Tests of the report on a made-up run: its files, its page and Markdown, its claims. Table of contents, in the order of the flow.

mod support;

mod results;
mod page;
mod claims;
