#!/bin/sh
# The tests of examples/ci: each is one statement and the answer it must give. Exit code 0 if all pass, else 3.
PGPASSWORD=$(cat /run/secrets/password)
export PGPASSWORD
failed=0

# expect NAME ANSWER STATEMENT
expect() {
	answer=$(psql --no-psqlrc -qAt -v ON_ERROR_STOP=1 -c "$3" 2>&1)
	case "$answer" in
		*"$2"*) echo "ok: $1" ;;
		*) echo "FAILED: $1: expected '$2', got '$answer'"; failed=1 ;;
	esac
}

expect 'the database is the one that was asked for' shop 'select current_database()'
expect 'a table is made' orders "create table orders (id serial primary key, amount numeric not null check (amount > 0));
	select to_regclass('orders')"
expect 'rows are counted' 3 'insert into orders (amount) values (1), (2), (3.5); select count(*) from orders'
expect 'sums are exact' 6.5 'select sum(amount) from orders'
expect 'what must not be is refused' 'violates check constraint' 'insert into orders (amount) values (0)'
if [ -n "$CI_BREAK" ]; then
	expect 'a test fails when CI_BREAK is set' 'something else' 'select 1'
fi

[ $failed = 0 ] || exit 3
echo 'all passed'
