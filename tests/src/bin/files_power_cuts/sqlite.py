# write JOURNAL LIFE DATABASE: commits transactions until it is killed, and prints the number of each
# that was acknowledged.
# check JOURNAL LIFE DATABASE NEWEST: whether the database is sound and holds whole transactions from
# 0 on, without a gap, NEWEST among them.
import itertools, os, random, sqlite3, sys

PARTS = 3
verb, journal, life, path = sys.argv[1:5]


def data(number, part):
    dice = random.Random(f"{life}/{number}/{part}")
    return dice.randbytes(dice.randrange(1, 6000 if dice.randrange(8) == 0 else 300))


database = sqlite3.connect(path, timeout=60, isolation_level=None)
if verb == "write":
    database.execute("PRAGMA journal_mode=" + ("WAL" if journal == "wal" else "DELETE"))
    # With FULL the removal of a rollback journal is not synced: a cut may bring it back, and the last commit is undone.
    database.execute("PRAGMA synchronous=" + ("FULL" if journal == "wal" else "EXTRA"))
    database.execute("CREATE TABLE kept (number, part, data, PRIMARY KEY (number, part))")
    database.execute("CREATE TABLE newest (number)")
    database.execute("INSERT INTO newest VALUES (-1)")
    for number in itertools.count():
        database.execute("BEGIN IMMEDIATE")
        for part in range(PARTS):
            database.execute("INSERT INTO kept VALUES (?, ?, ?)", (number, part, data(number, part)))
        database.execute("UPDATE newest SET number = ?", (number,))
        database.execute("COMMIT")
        os.write(1, b"%d\n" % number)
else:
    database.execute("BEGIN")
    (state,) = database.execute("PRAGMA integrity_check").fetchone()
    assert state == "ok", state
    rows = database.execute("SELECT number, part, data FROM kept ORDER BY number, part").fetchall()
    for at, row in enumerate(rows):
        number, part = divmod(at, PARTS)
        assert row == (number, part, data(number, part)), f"row {at} is {row[:2]}"
    (newest,) = database.execute("SELECT number FROM newest").fetchone()
    assert len(rows) == (newest + 1) * PARTS, f"{len(rows)} rows of {newest} transactions"
    assert newest >= int(sys.argv[5]), f"{sys.argv[5]} was acknowledged, the newest is {newest}"
