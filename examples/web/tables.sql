-- What the database holds at its first start.
create table greeting (
	id integer primary key,
	text text not null
);

insert into greeting values (1, 'Hello from a row in PostgreSQL');
