-- A server orders a certificate: it has a row for each name while it does, and once the CA has
-- asked, the answer, which every server that users reach under the name gives.
CREATE TABLE acme_challenges (
    name TEXT NOT NULL PRIMARY KEY,
    owner TEXT NOT NULL,
    lease_until DOUBLE PRECISION NOT NULL,
    kind TEXT NOT NULL,
    token TEXT NOT NULL,
    key_authorization TEXT NOT NULL
);
