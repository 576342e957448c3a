package testkit

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/setpointdb/setpoint/migrations"
)

const (
	// templateLock is the key of the advisory lock under which processes make the template.
	templateLock = 0x736574706f696e74
	// sqlObjectInUse is raised when somebody is connected to the database that is to be copied, such as autovacuum.
	sqlObjectInUse = "55006"
)

// cluster makes databases on a server.
type cluster struct {
	backend *Backend
	base    *url.URL
	admin   *pgxpool.Pool

	mu   sync.Mutex
	made string // the template, once it is there
}

func newCluster(ctx context.Context, b *Backend) (*cluster, error) {
	base, err := url.Parse(b.URL)
	if err != nil || (base.Scheme != "postgres" && base.Scheme != "postgresql") {
		return nil, fmt.Errorf("%s is not a postgres:// URL", EnvDatabaseURL)
	}
	config, err := pgxpool.ParseConfig(b.URL)
	if err != nil {
		return nil, fmt.Errorf("read the database's URL: %w", err)
	}
	// Copies that run at once hold one another up; two of them keep both a disk and a processor busy.
	config.MaxConns = 2
	config.ConnConfig.DefaultQueryExecMode = pgx.QueryExecModeExec
	admin, err := pgxpool.NewWithConfig(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("connect to the database: %w", err)
	}
	if err := admin.Ping(ctx); err != nil {
		admin.Close()
		return nil, fmt.Errorf("connect to the database: %w", err)
	}
	return &cluster{backend: b, base: base, admin: admin}, nil
}

func (c *cluster) close() error {
	c.admin.Close()
	return c.backend.Stop()
}

// url is the server's URL with another database.
func (c *cluster) url(database string) string {
	u := *c.base
	u.Path, u.RawPath = "/"+database, ""
	return u.String()
}

// create copies a database, again and again while somebody is connected to the original.
func (c *cluster) create(ctx context.Context, name, template string) error {
	for {
		_, err := c.admin.Exec(ctx, "create database "+quote(name)+" template "+quote(template))
		var pgErr *pgconn.PgError
		if !errors.As(err, &pgErr) || pgErr.Code != sqlObjectInUse {
			if err != nil {
				return fmt.Errorf("create database %s: %w", name, err)
			}
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("create database %s (%w): %w", name, ctx.Err(), err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

func (c *cluster) drop(ctx context.Context, name string) error {
	if _, err := c.admin.Exec(ctx, "drop database if exists "+quote(name)+" with (force)"); err != nil {
		return fmt.Errorf("drop database %s: %w", name, err)
	}
	return nil
}

// template returns the name of the migrated database, which this or another process makes once for each state of the
// migrations. A server that lives longer than the tests keeps it for the next run.
func (c *cluster) template(ctx context.Context) (string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.made != "" {
		return c.made, nil
	}
	name, err := templateName()
	if err != nil {
		return "", err
	}
	conn, err := c.admin.Acquire(ctx)
	if err != nil {
		return "", fmt.Errorf("make the template: %w", err)
	}
	defer conn.Release()
	if _, err := conn.Exec(ctx, "select pg_advisory_lock($1)", int64(templateLock)); err != nil {
		return "", fmt.Errorf("lock the template: %w", err)
	}
	err = c.makeTemplate(ctx, conn, name)
	if _, unlockErr := conn.Exec(context.WithoutCancel(ctx), "select pg_advisory_unlock($1)", int64(templateLock)); unlockErr != nil {
		// A connection that keeps the lock must not go back into the pool.
		err = errors.Join(err, unlockErr, conn.Conn().Close(context.WithoutCancel(ctx)))
	}
	if err != nil {
		return "", fmt.Errorf("make the template: %w", err)
	}
	c.made = name
	return name, nil
}

// makeTemplate migrates under another name, so that what bears the template's name is complete.
func (c *cluster) makeTemplate(ctx context.Context, conn *pgxpool.Conn, name string) error {
	var there bool
	err := conn.QueryRow(ctx, "select exists (select from pg_database where datname = $1)", name).Scan(&there)
	if err != nil || there {
		return err
	}
	building := name + "_building"
	if err := c.drop(ctx, building); err != nil {
		return err
	}
	if err := c.create(ctx, building, "template0"); err != nil {
		return err
	}
	if err := migrations.Up(ctx, c.url(building)); err != nil {
		return err
	}
	// Nobody may connect: a copy needs an original that nobody uses.
	for _, statement := range []string{
		"alter database " + quote(building) + " with allow_connections false",
		"alter database " + quote(building) + " rename to " + quote(name),
	} {
		if _, err := conn.Exec(ctx, statement); err != nil {
			return fmt.Errorf("%s: %w", statement, err)
		}
	}
	return nil
}

// templateName changes with the migrations.
func templateName() (string, error) {
	sum := sha256.New()
	files := migrations.Files()
	err := fs.WalkDir(files, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := fs.ReadFile(files, path)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintf(sum, "%s %d\n%s", path, len(text), text)
		return err
	})
	if err != nil {
		return "", fmt.Errorf("read the migrations: %w", err)
	}
	return "setpoint_template_" + hex.EncodeToString(sum.Sum(nil)[:8]), nil
}
