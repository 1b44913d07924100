-- One row a transcript. Text and audio are not here but in files of the spool, named by `key`:
-- SQLite leaves copies of deleted cells in its pages, even with secure_delete.
CREATE TABLE transcripts (
    key TEXT PRIMARY KEY,
    owner TEXT NOT NULL,
    id TEXT NOT NULL,
    receiver TEXT NOT NULL,
    rate INTEGER NOT NULL,
    channels INTEGER NOT NULL,
    frames INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    language TEXT NOT NULL,
    state TEXT NOT NULL,
    created REAL NOT NULL,
    expires REAL NOT NULL,
    forget REAL,
    sent_owner INTEGER NOT NULL,
    sent_receiver INTEGER NOT NULL,
    given_owner INTEGER NOT NULL,
    given_receiver INTEGER NOT NULL,
    model TEXT,
    reason TEXT,
    UNIQUE (owner, id)
);
CREATE INDEX transcripts_by_receiver ON transcripts (receiver);
CREATE INDEX transcripts_by_expiry ON transcripts (expires) WHERE forget IS NULL;
CREATE INDEX transcripts_by_forget ON transcripts (forget) WHERE forget IS NOT NULL;
CREATE INDEX transcripts_unfinished ON transcripts (created)
    WHERE state IN ('queued', 'transcribing');
