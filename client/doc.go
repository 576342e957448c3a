// Package client is the Go client of Setpoint: typed, constrained, versioned variables in sessions, kept by a gRPC
// service in front of PostgreSQL.
//
// # Connect
//
// [Dial] makes a [Client]. It does not wait for the server; the first call connects.
//
//	c, err := client.Dial("127.0.0.1:7420")
//	if err != nil {
//		return err
//	}
//	defer c.Close()
//
// A server that checks tokens takes one from [WithTokenFile] (or [WithToken]), over [WithTLS]; one that knows its callers by
// their certificates is shown one by [WithClientCertificate]. Files with a token or a key are for the program's own eyes:
// mode 0600. A Client is safe for any number of goroutines, and one is enough for a program.
//
// # Register, read, set
//
// A Client has the service's own generated clients as fields, so everything in package setpointv1 is at hand:
//
//	_, err = c.Sessions.CreateSession(ctx, &setpointv1.CreateSessionRequest{SessionId: "run-7"})
//
//	v, err := c.Variables.RegisterVariable(ctx, &setpointv1.RegisterVariableRequest{
//		SessionId:   "run-7",
//		Name:        "temperature",
//		Type:        setpointv1.VariableType_VARIABLE_TYPE_FLOAT,
//		Value:       client.Float(0.7),
//		Constraints: &setpointv1.Constraints{Min: proto.Float64(0), Max: proto.Float64(2)},
//	})
//
//	v, err = c.Variables.GetVariable(ctx, &setpointv1.GetVariableRequest{SessionId: "run-7", Variable: "temperature"})
//	fmt.Println(v.GetValue().GetNumber(), "at version", v.GetVersion())
//
//	set, err := c.Variables.SetVariable(ctx, &setpointv1.SetVariableRequest{
//		SessionId: "run-7", Variable: "temperature", Value: client.Float(0.9), Reason: "less repetition",
//	})
//
// [Float], [Integer], [String], [Bool], [Choice], [Module], [Embedding], [Tensor] and [JSON] make values. A session ends
// when nobody calls in it for its ttl (an hour unless the request says otherwise).
//
// # Change what you have read
//
// A set without expected_version overwrites whatever is there. With it, the set takes place only if nobody came between;
// otherwise the error is [ErrVersionMismatch] and nothing has changed. Read again, decide again, set again:
//
//	for {
//		v, err := c.Variables.GetVariable(ctx, get)
//		if err != nil {
//			return err
//		}
//		_, err = c.Variables.SetVariable(ctx, &setpointv1.SetVariableRequest{
//			SessionId: "run-7", Variable: "temperature",
//			Value:           client.Float(v.GetValue().GetNumber() * 0.9),
//			ExpectedVersion: proto.Int64(v.GetVersion()),
//		})
//		if !errors.Is(err, client.ErrVersionMismatch) {
//			return err
//		}
//	}
//
// Version 0 is a real version, the registered one: expected_version is optional, not zero, when it does not matter.
//
// # Look back, go back
//
// Every change is kept with who made it, when and why. History lists it, and a rollback writes an earlier value as a new
// version:
//
//	list, err := c.History.ListHistory(ctx, &setpointv1.ListHistoryRequest{SessionId: "run-7", Variable: "temperature"})
//
//	v, err = c.History.RollbackVariable(ctx, &setpointv1.RollbackVariableRequest{
//		SessionId: "run-7", Variable: "temperature", Version: 0, Reason: "0.9 rambled",
//	})
//
// # Let variables follow each other
//
// A variable with an expression is derived: the server computes it from the others, and again whenever one of them
// changes. The answer of the set tells what followed:
//
//	_, err = c.Variables.RegisterVariable(ctx, &setpointv1.RegisterVariableRequest{
//		SessionId: "run-7", Name: "total", Type: setpointv1.VariableType_VARIABLE_TYPE_INTEGER,
//		Expression: "batch_size * steps",
//	})
//	set, err = c.Variables.SetVariable(ctx, &setpointv1.SetVariableRequest{
//		SessionId: "run-7", Variable: "steps", Value: client.Integer(200),
//	})
//	for _, v := range set.GetRecomputed() {
//		fmt.Println(v.GetVariable(), "is now", v.GetValue().GetInteger())
//	}
//
// A dependency without an expression marks the dependent stale instead, until somebody sets it:
//
//	_, err = c.Dependencies.AddDependency(ctx, &setpointv1.AddDependencyRequest{
//		SessionId: "run-7", Dependent: "report", Dependency: "total",
//	})
//
// # Optimize
//
// An optimization is the exclusive right to change variables, for as long as its lease holds: nobody else sets, rolls back
// or deletes them in the meantime. Start one, wait if somebody else is at it, and let a [LeaseKeeper] renew the lease:
//
//	opt, err := c.Optimizations.StartOptimization(ctx, &setpointv1.StartOptimizationRequest{
//		SessionId: "run-7", Variables: []string{"learning_rate"},
//		Conflict:  setpointv1.ConflictStrategy_CONFLICT_STRATEGY_WAIT,
//		Objective: &setpointv1.Objective{Metric: "loss", Direction: setpointv1.Direction_DIRECTION_MINIMIZE},
//	})
//	if err != nil {
//		return err
//	}
//	if opt, err = c.AwaitLease(ctx, "run-7", opt.GetOptimizationId(), nil); err != nil {
//		return err
//	}
//	keeper, err := c.KeepLease(ctx, opt)
//	if err != nil {
//		return err
//	}
//	defer keeper.Close()
//
// Work under the keeper's context. It is cancelled before the lease can be over: when renewals do not get through, or an
// optimization of a higher priority takes the variables; context.Cause tells which. Report each trial; with Apply, its
// values become the variables' own:
//
//	for trial := range trials {
//		loss, err := train(keeper.Context(), trial)
//		if err != nil {
//			return errors.Join(err, context.Cause(keeper.Context()))
//		}
//		_, err = keeper.Report(ctx, &setpointv1.ReportProgressRequest{
//			Values:  map[string]*setpointv1.Value{"learning_rate": client.Float(trial.rate)},
//			Metrics: map[string]float64{"loss": loss},
//		})
//		if err != nil {
//			return err
//		}
//	}
//	_, err = keeper.Stop(ctx, &setpointv1.StopOptimizationRequest{ApplyBest: true})
//
// Other writes to the variables present the lease, as SetVariableRequest{Lease: keeper.Lease()} does. It has a fencing
// token, by which the database refuses whatever comes after the lease is over ([ErrLeaseLost]): also of a process that
// slept through that and does not know. [LeaseKeeper] tells how the time is reckoned, and what its margin is for.
//
// # Let others in
//
// The session's owner may do everything with its variables; others what access rules allow them, and where there is none,
// what the variable's access mode does, which is nothing unless somebody says otherwise:
//
//	rule, err := c.Access.AddAccessRule(ctx, &setpointv1.AddAccessRuleRequest{
//		SessionId: "run-7", Variable: "temperature",
//		Rule: &setpointv1.AccessRuleSpec{
//			Subject:     "group:ops",
//			Permissions: []setpointv1.Permission{setpointv1.Permission_PERMISSION_WRITE},
//			Expiry:      &setpointv1.AccessRuleSpec_Ttl{Ttl: durationpb.New(8 * time.Hour)},
//		},
//	})
//
// A call that is refused fails with [ErrAccessDenied]; [Denied] tells which permission was lacking, on which variable. A
// session in which the caller may do nothing is one that does not exist. Access.CheckAccess tells beforehand, and why.
//
// Admins of the server make the tokens, whose secret is in the answer and nowhere else:
//
//	made, err := c.Tokens.CreateToken(ctx, &setpointv1.CreateTokenRequest{Principal: "service:trainer-1"})
//	err = os.WriteFile("trainer-1.token", []byte(made.GetSecret()), 0o600)
//
// # Errors
//
// Every error of a call is an [*Error]. Each reason that the API knows has a value to compare with:
//
//	switch {
//	case errors.Is(err, client.ErrConstraintViolation):   // the message names variable, value and rule
//	case errors.Is(err, client.ErrVariableNotFound):      // register it first
//	case errors.Is(err, client.ErrWouldCreateCycle):      // client.CyclePath(err) names the variables of it
//	case errors.Is(err, client.ErrAlreadyOptimizing):     // client.Holder(err) tells who has the right to change it
//	case errors.Is(err, client.ErrAccessDenied):          // client.Denied(err) tells which permission was lacking
//	case errors.Is(err, client.ErrCredentialsInvalid):    // the token is unknown, expired or revoked
//	case errors.Is(err, client.ErrUnreachable):           // no server answers
//	case errors.Is(err, context.DeadlineExceeded):        // out of time
//	}
//
// errors.As with an *Error gives the message, the metadata, the fields that a request got wrong, and the rest. The items
// of a batch fail one by one; [FromItem] makes the same errors of them.
//
// # Retries
//
// A call is repeated, with exponential backoff and full jitter, while the server cannot be reached, the database cannot
// be reached or is too busy, or concurrent transactions kept colliding. A write is then sent under a request_id, which
// makes it exactly-once: if the first attempt did take place and only its answer was lost, the repeat returns that
// answer and changes nothing. The client chooses the request_id where the request has none; give your own to carry the
// promise across a restart of your program. CreateToken is the one call that is not repeated where its answer was lost: it
// would leave a token behind that nobody has. Streams are not repeated, but by [Client.AwaitLease]. [WithRetry] and
// [WithoutRetry] change this, and a context's deadline always bounds the whole call, waits included.
//
// # Limits
//
// A call whose context has no deadline gets one of 30 seconds ([WithTimeout]); one that streams, such as
// AwaitOptimization, gets none. Messages are at most 64 MiB.
package client
