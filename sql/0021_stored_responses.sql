-- Responses that users had stored, for their account.  Each has its whole conversation, so that
-- none depends on another.
CREATE TABLE stored_responses (
    account TEXT NOT NULL,
    id TEXT NOT NULL,                       -- the server's
    size BIGINT NOT NULL,                   -- bytes of both texts
    created_at DOUBLE PRECISION NOT NULL,
    expires_at DOUBLE PRECISION NOT NULL,
    input BYTEA NOT NULL,                   -- JSON: all items that the engine got
    response BYTEA NOT NULL,                -- JSON: the object as it is shown
    PRIMARY KEY (account, id)
);
CREATE INDEX stored_responses_by_age ON stored_responses (account, created_at, id, size);
CREATE INDEX stored_responses_by_end ON stored_responses (expires_at);
