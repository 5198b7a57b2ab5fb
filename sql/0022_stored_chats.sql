-- Chat completions are stored beside responses, in one table, so that an account has one bound.
-- What is looked at without the texts stands before them: SQLite reads a row from its beginning.
CREATE TABLE stored_answers (
    account TEXT NOT NULL,
    id TEXT NOT NULL,                       -- the server's; begins with the time
    kind TEXT NOT NULL,                     -- response or chat
    size BIGINT NOT NULL,                   -- bytes of metadata, input and answer
    created_at DOUBLE PRECISION NOT NULL,
    expires_at DOUBLE PRECISION NOT NULL,
    model TEXT NOT NULL,                    -- as it was asked for; empty for responses
    metadata TEXT NOT NULL,                 -- JSON in ASCII, one pair a line; empty for responses
    input BYTEA NOT NULL,                   -- JSON: the items or messages that the engine got
    answer BYTEA NOT NULL,                  -- JSON: the object as it is shown, without metadata
    PRIMARY KEY (account, id)
);
INSERT INTO stored_answers
    SELECT account, id, 'response', size, created_at, expires_at, '', '', input, response
    FROM stored_responses;
DROP TABLE stored_responses;
CREATE INDEX stored_answers_by_age ON stored_answers (account, created_at, id, size);
CREATE INDEX stored_answers_by_end ON stored_answers (expires_at);
