-- A stranger's request is answered by this index alone: that an id is not there, and that it is
-- somebody else's, is the same search, which ends before any row is read. It is declared unique,
-- as (owner, id) is, because SQLite would otherwise search that shorter index and read the row.
CREATE UNIQUE INDEX transcripts_by_sides ON transcripts (owner, id, receiver);

-- How the machine's clock stood when it was read last, in one row: which start of the machine that
-- was, and when that start was. If it is another time by now, the clock was set in between.
CREATE TABLE clock (
    boot TEXT NOT NULL,
    boot_time REAL NOT NULL
);
