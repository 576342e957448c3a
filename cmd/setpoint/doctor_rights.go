package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5"
)

// right is what a server's role needs on tables.
type right struct {
	privileges string // as in a grant, separated by commas
	columns    string // unless empty, these columns alone
	tables     string // with their schemas, separated by spaces
}

// serverRights are the least rights with which a server works, those that docs/operations.md grants.
var serverRights = []right{
	{"select, insert, update, delete", "", "setpoint.sessions setpoint.variables setpoint.requests setpoint.optimizations"},
	{"select, insert, delete", "", "setpoint.history setpoint.payloads setpoint.dependencies setpoint.optimization_variables " +
		"setpoint.optimization_waiters setpoint.trials setpoint.trial_metrics setpoint.access_rules setpoint.audit_events"},
	{"select, insert", "", "setpoint.tokens"},
	{"update", "revoked_at, revoked_by", "setpoint.tokens"},
	{"select", "", "public.setpoint_schema_version"},
}

// lackingSQL finds what of a list of rights the role lacks, as the beginnings of grants. What is not there yet is the schema's matter.
const lackingSQL = `
select format('%s on %s', string_agg(privilege || columns, ', ' order by i), qualified)
from (
    select w.i, w.privilege, case when w.col = '' then '' else ' (' || w.col || ')' end as columns, n.nspname || '.' || c.relname as qualified,
        min(w.i) over (partition by c.oid) as first
    from unnest($1::text[], $2::text[], $3::text[]) with ordinality as w(qualified, privilege, col, i)
    join pg_catalog.pg_namespace n on n.nspname = split_part(w.qualified, '.', 1)
    join pg_catalog.pg_class c on c.relnamespace = n.oid and c.relname = split_part(w.qualified, '.', 2)
    where case when w.col = '' then not has_table_privilege(c.oid, w.privilege)
        else exists (select from pg_catalog.pg_attribute a where a.attrelid = c.oid and a.attname = w.col and not a.attisdropped
            and not has_column_privilege(c.oid, a.attnum, w.privilege)) end
) lacking
group by qualified, first order by first`

// lackingFunctionsSQL finds the functions of the schema that the role may not execute. Those of triggers need no right.
const lackingFunctionsSQL = `
select p.oid::regprocedure::text
from pg_catalog.pg_proc p join pg_catalog.pg_namespace n on n.oid = p.pronamespace
where n.nspname = 'setpoint' and p.prorettype <> 'trigger'::regtype and not has_function_privilege(p.oid, 'execute')
order by p.proname`

// examineRights looks whether the role may do what a server does, of what is there.
func examineRights(ctx context.Context, conn *pgx.Conn) (finding, error) {
	f := finding{what: "rights"}
	var role string
	if err := conn.QueryRow(ctx, "select current_user").Scan(&role); err != nil {
		return f, err
	}
	lacking, err := lackingRights(ctx, conn)
	if err != nil {
		return f, err
	}
	if len(lacking) == 0 {
		f.found = role + " has what a server needs"
		return f, nil
	}
	f.found = fmt.Sprintf("%s lacks %s", role, strings.Join(lacking, "; "))
	to := pgx.Identifier{role}.Sanitize()
	for i, what := range lacking {
		lacking[i] = fmt.Sprintf("grant %s to %s;", what, to)
	}
	f.advice = "as the owner of the schema: " + strings.Join(lacking, " ")
	return f, nil
}

// lackingRights are the rights that a server needs and the role lacks, as a grant has them.
func lackingRights(ctx context.Context, conn *pgx.Conn) ([]string, error) {
	var missing bool
	err := conn.QueryRow(ctx, `select coalesce((select not has_schema_privilege(oid, 'usage') from pg_catalog.pg_namespace
		where nspname = 'setpoint'), false)`).Scan(&missing)
	if err != nil {
		return nil, err
	}
	var lacking []string
	if missing {
		lacking = append(lacking, "usage on schema setpoint")
	}
	var tables, privileges, columns []string
	for _, r := range serverRights {
		for table := range strings.FieldsSeq(r.tables) {
			for privilege := range strings.SplitSeq(r.privileges, ", ") {
				for column := range strings.SplitSeq(r.columns, ", ") { // one that is empty is the table
					tables, privileges, columns = append(tables, table), append(privileges, privilege), append(columns, column)
				}
			}
		}
	}
	onTables, err := texts(ctx, conn, lackingSQL, tables, privileges, columns)
	if err != nil {
		return nil, err
	}
	functions, err := texts(ctx, conn, lackingFunctionsSQL)
	if err != nil {
		return nil, err
	}
	lacking = append(lacking, onTables...)
	if len(functions) > 0 {
		lacking = append(lacking, "execute on function "+strings.Join(functions, ", "))
	}
	return lacking, nil
}

// texts are the rows of a query of one column.
func texts(ctx context.Context, conn *pgx.Conn, sql string, args ...any) ([]string, error) {
	rows, err := conn.Query(ctx, sql, args...)
	if err != nil {
		return nil, err
	}
	return pgx.CollectRows(rows, pgx.RowTo[string])
}
