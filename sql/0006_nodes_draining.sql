-- Set by the operator: a node that drains finishes what runs on it and is given nothing new.  It
-- outlasts the node's registrations and the server.
ALTER TABLE nodes ADD COLUMN draining BOOLEAN NOT NULL DEFAULT FALSE;

-- Why a node's engines are asked nothing, as the node last said; '' when one of them is.
ALTER TABLE nodes ADD COLUMN problem TEXT NOT NULL DEFAULT '';
