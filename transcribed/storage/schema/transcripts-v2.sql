-- A stranger's request is answered by this index alone: that an id is not there, and that it is
-- somebody else's, is the same search, which ends before any row is read. It is declared unique,
-- as (owner, id) is, because SQLite would otherwise search that shorter index and read the row.
CREATE UNIQUE INDEX transcripts_by_sides ON transcripts (owner, id, receiver);
