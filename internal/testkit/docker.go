package testkit

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/jackc/pgx/v5"
	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
	tclog "github.com/testcontainers/testcontainers-go/log"

	"github.com/setpointdb/setpoint/internal/localpg"
)

const (
	containerPort = "5432/tcp"
	// bootPatience bounds the time from a container's start to PostgreSQL's first answer.
	bootPatience = 2 * time.Minute
)

// errNoEngine means that no Docker engine answers.
var errNoEngine = errors.New("no Docker engine answers")

// startContainer runs the image. The container's name is written down before there is a container, so that it can be
// removed even if this process is killed the moment after.
func startContainer(ctx context.Context) (*Backend, error) {
	image := os.Getenv(EnvImage)
	if image == "" {
		image = DefaultImage
	}
	if err := ensureImage(ctx, image); err != nil {
		return nil, err
	}
	var unlock func() error
	dir, err := own(containerPrefix, func(dir string) error {
		var err error
		unlock, err = localpg.Lock(dir)
		return err
	})
	if err != nil {
		return nil, err
	}
	name := "setpoint-test-" + strings.ToLower(rand.Text())
	release := func() error {
		return errors.Join(removeContainer(context.Background(), name), unlock(), localpg.Remove(context.Background(), dir))
	}
	if err := os.WriteFile(filepath.Join(dir, "name"), []byte(name), 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("write the container's name down: %w", err), release())
	}
	databaseURL, err := runContainer(ctx, image, name)
	if err != nil {
		return nil, errors.Join(err, release())
	}
	return &Backend{URL: databaseURL, Name: "Docker image " + image, stop: release}, nil
}

func runContainer(ctx context.Context, image, name string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, bootPatience)
	defer cancel()
	password := rand.Text()
	ctr, err := testcontainers.Run(ctx, image, testcontainers.WithName(name),
		testcontainers.WithEnv(map[string]string{
			"POSTGRES_USER": localpg.User, "POSTGRES_PASSWORD": password, "POSTGRES_DB": localpg.Database,
		}),
		testcontainers.WithCmd("postgres", "-c", "max_connections="+maxConnections),
		testcontainers.WithExposedPorts(containerPort))
	if err != nil {
		return "", fmt.Errorf("run %s: %w", image, err)
	}
	host, err := ctr.Host(ctx)
	if err != nil {
		return "", fmt.Errorf("find the container: %w", err)
	}
	port, err := ctr.MappedPort(ctx, containerPort)
	if err != nil {
		return "", fmt.Errorf("find the container's port: %w", err)
	}
	var candidates []string
	for _, host := range []string{host, "127.0.0.1"} {
		u := url.URL{Scheme: "postgres", User: url.UserPassword(localpg.User, password),
			Host: net.JoinHostPort(host, port.Port()), Path: "/" + localpg.Database, RawQuery: "sslmode=disable"}
		candidates = append(candidates, u.String())
	}
	return firstAnswer(ctx, ctr, candidates)
}

// firstAnswer returns the URL that leads to the container. Where testcontainers believes this process to be in a container
// itself, as a file /.dockerenv makes it, the host it names may be wrong. Only a query's answer counts: the image's log
// announces a server twice, the first being temporary, and the engine's own proxy accepts connections before that.
func firstAnswer(ctx context.Context, ctr *testcontainers.DockerContainer, candidates []string) (string, error) {
	for {
		var errs []error
		for _, candidate := range candidates {
			err := answers(ctx, candidate)
			if err == nil {
				return candidate, nil
			}
			errs = append(errs, err)
		}
		select {
		case <-ctx.Done():
			return "", fmt.Errorf("wait for PostgreSQL in the container (%w): %w", ctx.Err(), errors.Join(errs...))
		case <-time.After(50 * time.Millisecond):
		}
		state, err := ctr.State(ctx)
		if err == nil && !state.Running {
			return "", fmt.Errorf("the container ended with status %d before PostgreSQL answered", state.ExitCode)
		}
	}
}

func answers(ctx context.Context, databaseURL string) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, databaseURL)
	if err != nil {
		return err
	}
	return errors.Join(conn.Ping(ctx), conn.Close(ctx))
}

// ensureImage pulls what the engine does not have. testcontainers would too, but tries for a quarter of an hour where
// there is no way to the registry.
func ensureImage(ctx context.Context, image string) error {
	provider, err := engine()
	if err != nil {
		return err
	}
	defer provider.Close() //nolint:errcheck // it closes idle connections
	_, err = provider.Client().ImageInspect(ctx, image)
	if err == nil {
		return nil
	}
	if !errdefs.IsNotFound(err) {
		return fmt.Errorf("look for the image %s: %w", image, err)
	}
	pull, err := provider.Client().ImagePull(ctx, image, client.ImagePullOptions{})
	if err != nil {
		return fmt.Errorf("pull the image %s: %w", image, err)
	}
	if err := pull.Wait(ctx); err != nil {
		return fmt.Errorf("pull the image %s: %w", image, err)
	}
	return nil
}

// removeContainer kills a container and removes it with its data. One that is not there is fine.
func removeContainer(ctx context.Context, name string) error {
	provider, err := engine()
	if err != nil {
		return err
	}
	defer provider.Close() //nolint:errcheck // it closes idle connections
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	_, err = provider.Client().ContainerRemove(ctx, name, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
	if err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove the container %s: %w", name, err)
	}
	return nil
}

// quieten runs before testcontainers reads its configuration, which it does once. Its reaper, a second container that
// removes the first, does nothing that sweep does not, and stays off unless the environment says otherwise.
var quieten = sync.OnceValue(func() error {
	tclog.SetDefault(tclog.NewNoopLogger())
	const reaperOff = "TESTCONTAINERS_RYUK_DISABLED"
	if _, set := os.LookupEnv(reaperOff); set {
		return nil
	}
	return os.Setenv(reaperOff, "true")
})

func engine() (*testcontainers.DockerProvider, error) {
	if err := quieten(); err != nil {
		return nil, fmt.Errorf("configure testcontainers: %w", err)
	}
	provider, err := testcontainers.NewDockerProvider()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoEngine, err)
	}
	return provider, nil
}
