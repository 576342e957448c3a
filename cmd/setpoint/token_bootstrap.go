package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/user"
	"strings"
	"unicode"

	"github.com/setpointdb/setpoint/db"
	setpointv1 "github.com/setpointdb/setpoint/gen/setpoint/v1"
	"github.com/setpointdb/setpoint/migrations"
	"github.com/setpointdb/setpoint/service"
)

// bootstrapToken makes a server admin's token in the database itself.
func bootstrapToken(ctx context.Context, url string, request *setpointv1.CreateTokenRequest) (
	*setpointv1.CreateTokenResponse, error,
) {
	if err := withMigrator(url, func(m *migrations.Migrator) error { return checkSchema(ctx, m) }); err != nil {
		return nil, err
	}
	database, err := db.Open(ctx, db.Config{URL: url, MaxConns: 1})
	if err != nil {
		return nil, err
	}
	defer database.Close()
	answer, err := service.BootstrapToken(ctx, database, request, operator())
	var refused *service.Error
	if errors.As(err, &refused) {
		return nil, refusedHere(refused)
	}
	return answer, err
}

// refusedHere is a refusal of this program's own as a server's would read.
func refusedHere(e *service.Error) error {
	message := e.Message
	for _, f := range e.Fields {
		if !strings.Contains(message, f.Description) {
			message += fmt.Sprintf("; %s: %s", f.Field, f.Description)
		}
	}
	return &reasonError{reason: e.Reason.String(), message: message}
}

// operator is who runs this program, as a principal: what the machine knows of them.
func operator() string {
	name, host := "unknown", "unknown"
	if current, err := user.Current(); err == nil {
		name = current.Username
	}
	if known, err := os.Hostname(); err == nil {
		host = known
	}
	visible := func(r rune) rune {
		if unicode.IsSpace(r) || !unicode.IsPrint(r) {
			return '_'
		}
		return r
	}
	text := strings.Map(visible, strings.ToValidUTF8(name+"@"+host, "_"))
	const most = 256 - len("os:")
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "")
	}
	return "os:" + text
}
